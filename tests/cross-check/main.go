// Command cross-check reads the layers of an OCI layout as the tools read them whose formats they are.
//
// usage: cross-check LAYOUT
//
// eStargz with the estargz library: the TOC's digest, each chunk with its verifier, and all of it against the archive
// that the layer also is. zstd:chunked with containers/storage, which pulls it in parts into an overlay store and
// computes the diff_id from what it has. Needs root.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containers/storage"
	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/chunked"
	"github.com/opencontainers/go-digest"
)

type descriptor struct {
	MediaType   string
	Digest      digest.Digest
	Size        int64
	Annotations map[string]string
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: cross-check LAYOUT")
	}
	layout := os.Args[1]
	var index struct{ Manifests []descriptor }
	must(load(filepath.Join(layout, "index.json"), &index))
	for _, image := range index.Manifests {
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		must(load(blob(layout, image.Digest), &manifest))
		var config struct {
			RootFS struct {
				DiffIDs []digest.Digest `json:"diff_ids"`
			}
		}
		must(load(blob(layout, manifest.Config.Digest), &config))
		for i, layer := range manifest.Layers {
			file, err := os.Open(blob(layout, layer.Digest))
			must(err)
			said, err := check(file, layer, config.RootFS.DiffIDs[i])
			if err != nil {
				log.Fatalf("%s: %v", layer.Digest, err)
			}
			fmt.Println(layer.Digest, said)
			file.Close()
		}
	}
}

func check(file *os.File, layer descriptor, diffID digest.Digest) (string, error) {
	if toc, ok := layer.Annotations[estargz.TOCJSONDigestAnnotation]; ok {
		return checkEstargz(io.NewSectionReader(file, 0, layer.Size), digest.Digest(toc), layer, diffID)
	}
	if _, ok := layer.Annotations["io.github.containers.zstd-chunked.manifest-checksum"]; ok {
		return checkZstdChunked(file, layer, diffID)
	}
	return "", errors.New("the layer's annotations name no table of contents")
}

func checkEstargz(blob *io.SectionReader, toc digest.Digest, layer descriptor, diffID digest.Digest) (string, error) {
	reader, err := estargz.Open(blob)
	if err != nil {
		return "", err
	}
	verifier, err := reader.VerifyTOC(toc)
	if err != nil {
		return "", err
	}
	plain, err := gzip.NewReader(blob)
	if err != nil {
		return "", err
	}
	hash, size := digest.Canonical.Digester(), &counter{}
	raw := io.TeeReader(plain, io.MultiWriter(hash.Hash(), size))
	archive := tar.NewReader(raw)
	listed := map[string]bool{}
	chunks := 0
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return "", err
		}
		if header.Name == estargz.TOCTarName {
			if len(listed) == 0 {
				return "", errors.New("the TOC is the first entry")
			}
			continue
		}
		listed[strings.TrimSuffix(header.Name, "/")] = true
		entry, ok := reader.Lookup(header.Name)
		if !ok {
			return "", fmt.Errorf("%s is not in the TOC", header.Name)
		}
		if err := matches(header, entry); err != nil {
			return "", fmt.Errorf("%s: %w", header.Name, err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return "", err
		}
		if header.Size > 0 && digest.FromBytes(content).String() != entry.Digest {
			return "", fmt.Errorf("%s: its digest is not the TOC's", header.Name)
		}
		file, err := reader.OpenFile(header.Name)
		if err != nil {
			return "", err
		}
		for offset := int64(0); offset < header.Size; chunks++ {
			chunk, ok := reader.ChunkEntryForOffset(header.Name, offset)
			if !ok {
				return "", fmt.Errorf("%s: nothing at %d", header.Name, offset)
			}
			bytesOf := make([]byte, chunk.ChunkSize)
			if _, err := file.ReadAt(bytesOf, chunk.ChunkOffset); err != nil {
				return "", fmt.Errorf("%s at %d: %w", header.Name, offset, err)
			}
			v, err := verifier.Verifier(chunk)
			if err != nil {
				return "", err
			}
			v.Write(bytesOf)
			if !v.Verified() || !bytes.Equal(bytesOf, content[chunk.ChunkOffset:chunk.ChunkOffset+chunk.ChunkSize]) {
				return "", fmt.Errorf("%s: the chunk at %d is not what the archive has", header.Name, offset)
			}
			offset += chunk.ChunkSize
		}
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return "", err
	}
	root, _ := reader.Lookup("")
	if name, ok := onlyInTOC(root, "", listed); ok {
		return "", fmt.Errorf("%s is in the TOC and not in the archive", name)
	}
	if hash.Digest() != diffID {
		return "", fmt.Errorf("its archive is %s, the config says %s", hash.Digest(), diffID)
	}
	if said := layer.Annotations[estargz.StoreUncompressedSizeAnnotation]; said != fmt.Sprint(size.n) {
		return "", fmt.Errorf("the archive has %d bytes, and the annotation says %s", size.n, said)
	}
	return fmt.Sprintf("eStargz: %d entries, %d chunks", len(listed), chunks), nil
}

func matches(header *tar.Header, entry *estargz.TOCEntry) error {
	types := map[byte]string{tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeChar: "char",
		tar.TypeBlock: "block", tar.TypeFifo: "fifo"}
	if header.Typeflag == tar.TypeLink { // Lookup gives the file it is a name of
		if entry.Name != strings.TrimSuffix(path.Clean(header.Linkname), "/") || header.Mode != entry.Mode {
			return fmt.Errorf("a hard link to %q, in the TOC to %q", header.Linkname, entry.Name)
		}
		return nil
	}
	if types[header.Typeflag] != entry.Type {
		return fmt.Errorf("type %c, in the TOC %s", header.Typeflag, entry.Type)
	}
	mtime := entry.ModTime().Unix()
	if entry.ModTime3339 == "" {
		mtime = 0
	}
	a := fmt.Sprint(header.Mode, header.Size, header.Linkname, header.Devmajor, header.Devminor, header.Uid, header.Gid, header.ModTime.Unix())
	b := fmt.Sprint(entry.Mode, entry.Size, entry.LinkName, entry.DevMajor, entry.DevMinor, entry.UID, entry.GID, mtime)
	if a != b {
		return fmt.Errorf("%s, in the TOC %s", a, b)
	}
	return nil
}

func onlyInTOC(dir *estargz.TOCEntry, at string, listed map[string]bool) (name string, found bool) {
	dir.ForeachChild(func(base string, entry *estargz.TOCEntry) bool {
		full := path.Join(at, base)
		if !listed[full] {
			name, found = full, true
		} else if entry.Type == "dir" {
			name, found = onlyInTOC(entry, full, listed)
		}
		return !found
	})
	return name, found
}

func checkZstdChunked(file *os.File, layer descriptor, diffID digest.Digest) (string, error) {
	dir, err := os.MkdirTemp("", "cross-check")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	store, err := storage.GetStore(storage.StoreOptions{
		GraphRoot: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), GraphDriverName: "overlay",
		PullOptions: map[string]string{"enable_partial_images": "true"},
	})
	if err != nil {
		return "", err
	}
	defer store.Shutdown(true)
	ranges := &source{file: file}
	differ, err := chunked.NewDiffer(context.Background(), store, layer.Digest, layer.Size, layer.Annotations, ranges)
	if err != nil {
		return "", err
	}
	options := &graphdriver.ApplyDiffWithDifferOpts{}
	output, err := store.PrepareStagedLayer(options, differ)
	if err != nil {
		return "", err
	}
	if output.UncompressedDigest != diffID {
		return "", fmt.Errorf("its archive is %s, the config says %s", output.UncompressedDigest, diffID)
	}
	made, err := store.ApplyStagedLayer(storage.ApplyStagedLayerOptions{ID: diffID.Encoded(), DiffOutput: output, DiffOptions: options})
	if err != nil {
		return "", err
	}
	if made.UncompressedSize != output.Size {
		return "", fmt.Errorf("the layer has %d bytes, not %d", made.UncompressedSize, output.Size)
	}
	return fmt.Sprintf("zstd:chunked: %d of %d bytes fetched in %d ranges", ranges.bytes, layer.Size, ranges.count), nil
}

// source serves ranges of a blob, as a registry does.
type source struct {
	file         *os.File
	bytes, count int64
}

func (s *source) GetBlobAt(chunks []chunked.ImageSourceChunk) (chan io.ReadCloser, chan error, error) {
	streams, failures := make(chan io.ReadCloser), make(chan error)
	for _, chunk := range chunks {
		s.bytes += int64(chunk.Length)
		s.count++
	}
	go func() {
		defer close(streams)
		defer close(failures)
		for _, chunk := range chunks {
			done := make(chan struct{})
			streams <- &stream{io.NewSectionReader(s.file, int64(chunk.Offset), int64(chunk.Length)), done}
			<-done
		}
	}()
	return streams, failures, nil
}

type stream struct {
	io.Reader
	done chan struct{}
}

func (s *stream) Close() error { close(s.done); return nil }

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

func blob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

func load(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
