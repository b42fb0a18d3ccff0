//! What a job finds inside: no privileges, no network, its user, its arguments, its secrets.

use std::fs;
use std::os::unix::fs::MetadataExt;

use addonfs::jobs::executor::{Cause, Executor, NetworkSpec};
use addonfs::jobs::oci::{OciExecutor, OciOptions};
use addonfs::policy::addon::Network;

use crate::host::{spawner, with_each_runtime};

#[test]
fn no_capabilities_no_new_privileges_a_filter() {
    with_each_runtime(|host| {
        let done = host.run(host.sh("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(done.stdout.contains(&format!("{set}:\t0000000000000000")), "{}", done.stdout);
        }
        assert!(done.stdout.contains("NoNewPrivs:\t1"), "{}", done.stdout);
        assert!(done.stdout.contains("Seccomp:\t2"), "{}", done.stdout);
        let done = host
            .run(host.sh("mount -t tmpfs x /tmp && echo mounted; unshare -U true && echo unshared; true"));
        assert_eq!(done.stdout, "", "{}", done.stderr);
        assert!(done.stderr.contains("Operation not permitted"), "{}", done.stderr);
        let done = host.run(host.sh("cat /proc/kcore | head -c 1 | wc -c; ls /sys/firmware | wc -l"));
        assert_eq!(done.stdout, "0\n0\n");
    });
}

#[test]
fn descriptors_of_ours_do_not_reach_the_job() {
    with_each_runtime(|host| {
        let done = host.run_with(host.sh("exec ls /proc/self/fd"), &[("token", "hidden-value")]);
        let open: Vec<&str> = done.stdout.split_whitespace().collect();
        assert_eq!(open, ["0", "1", "2", "3"], "3 is the folder that ls reads");
    });
}

#[test]
fn root_is_read_only_or_thrown_away() {
    with_each_runtime(|host| {
        let done = host.run(host.sh(
            "touch /x /bin/x; touch /run/addonfs/x; touch /tmp/x && echo tmp; touch $RUN_DIR/x && echo out",
        ));
        assert_eq!(done.stdout, "tmp\nout\n");
        assert_eq!(done.stderr.matches("Read-only file system").count(), 3, "{}", done.stderr);

        let mut spec = host.sh("echo changed > /etc/passwd && touch /x && cat /etc/passwd");
        spec.read_only_root = false;
        assert_eq!(host.run(spec).stdout, "changed\n");
        let below = host.dir.path().join("rootfs");
        assert!(!below.join("x").exists() && !below.join("tmp").exists(), "the image was written to");
        assert!(fs::read_to_string(below.join("etc/passwd")).expect("passwd").contains("worker"));
    });
}

#[test]
fn network_none_is_a_loopback_that_works() {
    with_each_runtime(|host| {
        let done = host.run(
            host.sh("grep -c : /proc/net/dev; ip link | grep -c 'LOOPBACK,UP'; cat /proc/net/route | wc -l"),
        );
        assert_eq!(done.stdout, "1\n1\n1\n", "{}", done.stderr);
    });
}

#[test]
fn without_a_ready_namespace_the_runtime_makes_one() {
    with_each_runtime(|host| {
        let mut options = OciOptions::new(host.dir.path().join("scratch"));
        (options.runtime, options.ready_networks) = (Some(host.runtime.into()), 0);
        let executor = OciExecutor::new(spawner(), options);
        let launch = host.launch(host.sh("grep -c : /proc/net/dev; ip link | grep -c 'LOOPBACK,UP'"), &[]);
        let dir = launch.run_dir.clone();
        let shim = host.tokio.block_on(executor.start(launch)).expect("start");
        assert_eq!(host.wait(&dir, &shim).stdout, "1\n1\n");
    });
}

#[test]
fn network_user_has_a_way_out_and_host_has_the_hosts() {
    with_each_runtime(|host| {
        let given = host.executor.can_network(Network::All);
        assert_eq!(given, Ok(NetworkSpec::User), "pasta or slirp4netns is needed here");
        let mut spec = host.sh(
            "grep -c : /proc/net/dev; cat /etc/resolv.conf | grep -c nameserver; wc -l < /proc/net/route",
        );
        spec.network = NetworkSpec::User;
        let done = host.run(spec);
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(done.code(), Some(0), "{:?}", done.outcome);
        assert_eq!(lines.first(), Some(&"2"), "lo and one more: {}", done.stdout);
        assert!(
            lines.get(2).is_some_and(|routes| routes.parse::<u32>().expect("number") > 1),
            "{}",
            done.stdout
        );

        let mut spec = host.sh("exec cat /proc/net/dev");
        spec.network = NetworkSpec::Host;
        let names = |text: &str| -> Vec<String> {
            text.lines().filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned())).collect()
        };
        let host_names = names(&fs::read_to_string("/proc/net/dev").expect("dev"));
        assert_eq!(names(&host.run(spec).stdout), host_names);
    });
}

#[test]
fn user_workdir_environment_and_arguments() {
    with_each_runtime(|host| {
        let mut spec =
            host.sh("id; pwd; echo $HOME $A $RUN_DIR; cat /run/addonfs/args.json; echo x > /dev/stdout");
        spec.user = "worker".to_owned();
        spec.cwd = "/work/dir".to_owned();
        spec.env.push(("A".to_owned(), "b c".to_owned()));
        let done = host.run(spec);
        assert_eq!(done.code(), Some(0), "{:?} {}", done.outcome, done.stderr);
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert!(lines[0].starts_with("uid=1234(worker) gid=1235(worker)"), "{}", lines[0]);
        assert!(lines[0].contains("77(extra)"), "{}", lines[0]);
        assert_eq!(lines[1..], ["/work/dir", "/home/worker b c /run/addonfs/out", "{\"a\":1}x"]);
    });
}

#[test]
fn secrets_are_files_of_the_jobs_user_and_masked_in_every_output() {
    with_each_runtime(|host| {
        let script = "stat -c '%a %u' /run/secrets /run/secrets/token; cat /run/secrets/token; echo; \
            cat /run/secrets/token >&2; printf s3cr; sleep 0.1; printf 3t; env | grep -c s3cr[3]t; \
            touch /run/secrets/x || echo ro";
        let mut spec = host.sh(script);
        spec.user = "worker".to_owned();
        spec.secret_names = vec!["token".to_owned()];
        let done = host.run_with(spec, &[("token", "s3cr3t")]);
        assert_eq!(done.stdout, "700 1234\n600 1234\n[secret]\n[secret]0\nro\n", "{}", done.stderr);
        assert!(done.stderr.starts_with("[secret]"), "{}", done.stderr);
        for entry in fs::read_dir(&done.dir).expect("run folder").flatten() {
            let content = fs::read(entry.path()).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&content).contains("s3cr3t"),
                "{:?} tells the secret",
                entry.path()
            );
        }
        let done = host.run_with(host.sh("true"), &[("../x", "y")]);
        assert_eq!(done.outcome.cause, Cause::Refused);
    });
}

#[test]
fn tmp_and_shm_are_limited() {
    with_each_runtime(|host| {
        let done = host.run(
            host.sh("dd if=/dev/zero of=/tmp/big bs=64k count=100; stat -c %s /tmp/big; stat -c %a /tmp"),
        );
        assert_eq!(done.stdout, "1048576\n1777\n");
        assert!(done.stderr.contains("No space left"), "{}", done.stderr);
    });
}

#[test]
fn data_dir_is_the_hosts_folder() {
    with_each_runtime(|host| {
        let data = host.dir.path().join("data");
        fs::create_dir_all(&data).expect("data");
        let mut spec = host.sh("cat $DATA_DIR/kept; echo more >> $DATA_DIR/kept");
        spec.data_dir = Some(data.clone());
        fs::write(data.join("kept"), "before\n").expect("write");
        assert_eq!(host.run(spec).stdout, "before\n");
        assert_eq!(fs::read_to_string(data.join("kept")).expect("read"), "before\nmore\n");
        assert_eq!(fs::metadata(data.join("kept")).expect("stat").uid(), 0);
    });
}
