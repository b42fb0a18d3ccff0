// Times reads of one file from open to the last byte and prints the seconds.
//   reader sequential FILE          all of it, in steps of 1 MiB
//   reader random FILE COUNT SEED   COUNT times 4 KiB at offsets drawn from SEED
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STEP = 1 << 20, PAGE = 4096 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *state) { // xorshift
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    static char buffer[STEP];
    memset(buffer, 0, sizeof buffer);
    double begun = now();
    int file = open(argv[2], O_RDONLY);
    struct stat stat;
    if (file < 0 || fstat(file, &stat) != 0) return perror(argv[2]), 1;
    off_t total = 0;
    if (strcmp(argv[1], "sequential") == 0) {
        ssize_t got;
        while ((got = read(file, buffer, STEP)) > 0) total += got;
        if (total != stat.st_size) return perror("read"), 1;
    } else if (argc == 5) {
        uint64_t state = strtoull(argv[4], NULL, 10) * 2654435761u + 1;
        for (long left = atol(argv[3]); left > 0; left--) {
            off_t at = (off_t)(next(&state) % (uint64_t)(stat.st_size / PAGE)) * PAGE;
            if (pread(file, buffer, PAGE, at) != PAGE) return perror("pread"), 1;
        }
    } else {
        return 2;
    }
    printf("%.9f\n", now() - begun);
    return 0;
}
