//! A launch as the runtime wants it: `config.json` of the OCI runtime specification. Pure: facts in, document out.
//!
//! Not in it by intention: rlimits (root may lack CAP_SYS_RESOURCE, and then every run would fail), capabilities,
//! hooks, devices of the host, secrets.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use super::cgroup::Limits;
use super::seccomp;
use super::user::JobUser;
use crate::jobs::executor::{DATA_DIR_INSIDE, LaunchSpec, NetworkSpec, RUN_DIR_INSIDE, SECRETS_INSIDE};
use crate::policy::image_config::DEFAULT_PATH;

/// `/dev/shm` gets no more than this; a job that asked for a smaller `/tmp` gets no more than that.
const SHM_BYTES: u64 = 64 << 20;
/// The folder that holds args.json, `RUN_DIR` and `DATA_DIR`.
pub(super) const FOLDER_INSIDE: &str = "/run/addonfs";

/// What the host contributes; every path is one of the shim's mount namespace.
#[derive(Debug, Clone)]
pub(super) struct HostFacts {
    /// The mounted root file system.
    pub(super) rootfs: PathBuf,
    /// Becomes `/run/addonfs`; holds `args.json` and the mount points `out` and `data`.
    pub(super) folder: PathBuf,
    /// Becomes `RUN_DIR`.
    pub(super) out: PathBuf,
    /// Becomes `/run/secrets`, if there are any.
    pub(super) secrets: Option<PathBuf>,
    /// Becomes `/etc/resolv.conf`, with a network.
    pub(super) resolv_conf: Option<PathBuf>,
    /// A prepared network namespace; without it the runtime makes one.
    pub(super) network_namespace: Option<PathBuf>,
    /// The run's control group; `None` where there is none to be had.
    pub(super) cgroups_path: Option<String>,
    /// The limits that can be kept.
    pub(super) limits: Limits,
    /// v2 only: the container sees its own group.
    pub(super) unified_cgroups: bool,
    /// In a user namespace of ours: no group 5 for terminals.
    pub(super) rootless: bool,
}

/// The document.
pub(super) fn config(spec: &LaunchSpec, user: &JobUser, host: &HostFacts) -> Result<Spec, OciSpecError> {
    let root = RootBuilder::default().path(host.rootfs.clone()).readonly(spec.read_only_root).build()?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(spec, host)?)
        .resources(resources(host)?)
        .rootfs_propagation("private")
        .masked_paths(strings(&MASKED))
        .readonly_paths(strings(&READ_ONLY))
        .seccomp(seccomp::filter()?);
    if let Some(path) = &host.cgroups_path {
        linux = linux.cgroups_path(PathBuf::from(path));
    }
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(hostname(&spec.run_id))
        .root(root)
        .process(process(spec, user)?)
        .mounts(mounts(spec, host)?)
        .linux(linux.build()?)
        .build()
}

/// Kernel state that tells about the host or can hurt it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Kernel switches.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn process(spec: &LaunchSpec, user: &JobUser) -> Result<Process, OciSpecError> {
    let who =
        UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(user.groups.clone()).build()?;
    let none = std::collections::HashSet::new();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(none.clone())
        .effective(none.clone())
        .inheritable(none.clone())
        .permitted(none.clone())
        .ambient(none)
        .build()?;
    let cwd = if spec.cwd.starts_with('/') { spec.cwd.clone() } else { format!("/{}", spec.cwd) };
    ProcessBuilder::default()
        .terminal(false)
        .user(who)
        .args(spec.argv.clone())
        .env(environment(spec, user))
        .cwd(PathBuf::from(cwd))
        .capabilities(capabilities)
        .rlimits(Vec::new())
        .no_new_privileges(true)
        .build()
}

fn environment(spec: &LaunchSpec, user: &JobUser) -> Vec<String> {
    let mut env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut default = |name: &str, value: &str| {
        if !spec.env.iter().any(|(n, _)| n == name) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", user.home.as_deref().unwrap_or("/"));
    default("RUN_DIR", RUN_DIR_INSIDE);
    if spec.data_dir.is_some() {
        default("DATA_DIR", DATA_DIR_INSIDE);
    }
    env
}

fn namespaces(spec: &LaunchSpec, host: &HostFacts) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType as Type;
    let own = |typ: Type| LinuxNamespaceBuilder::default().typ(typ).build();
    let mut all = vec![own(Type::Pid)?, own(Type::Ipc)?, own(Type::Uts)?, own(Type::Mount)?];
    if host.cgroups_path.is_some() {
        all.push(own(Type::Cgroup)?);
    }
    match (&host.network_namespace, spec.network) {
        (_, NetworkSpec::Host) => {}
        (Some(path), _) => {
            all.push(LinuxNamespaceBuilder::default().typ(Type::Network).path(path.clone()).build()?);
        }
        (None, _) => all.push(own(Type::Network)?),
    }
    Ok(all)
}

fn resources(host: &HostFacts) -> Result<LinuxResources, OciSpecError> {
    let mut all = LinuxResourcesBuilder::default();
    if host.cgroups_path.is_none() {
        return all.build();
    }
    // Everything denied; the runtime adds the handful every container has (null, zero, full, random, tty, ptmx).
    all = all.devices([LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?]);
    if let Some(limit) = host.limits.memory {
        let memory = LinuxMemoryBuilder::default().limit(limit);
        all = all.memory(match host.limits.memory_and_swap {
            Some(both) => memory.swap(both).build()?,
            None => memory.build()?,
        });
    }
    if let Some((quota, period)) = host.limits.cpu {
        all = all.cpu(LinuxCpuBuilder::default().quota(quota).period(period).build()?);
    }
    if let Some(limit) = host.limits.pids {
        all = all.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    all.build()
}

fn mounts(spec: &LaunchSpec, host: &HostFacts) -> Result<Vec<Mount>, OciSpecError> {
    let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let terminals =
        terminals.into_iter().map(str::to_owned).chain((!host.rootless).then(|| "gid=5".to_owned()));
    let shm = SHM_BYTES.min(spec.tmp_bytes.max(1));
    let mut all = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"])?,
        mount("/dev/pts", "devpts", Path::new("devpts"), terminals.collect())?,
        tmpfs("/dev/shm", shm, &["nosuid", "nodev", "noexec"])?,
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
    ];
    if host.unified_cgroups && host.cgroups_path.is_some() {
        all.push(kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])?);
    }
    all.push(tmpfs("/tmp", spec.tmp_bytes, &["nosuid", "nodev"])?);
    all.push(bind(FOLDER_INSIDE, &host.folder, &["ro", "nosuid", "nodev", "noexec"])?);
    all.push(bind(&inside(spec, "RUN_DIR", RUN_DIR_INSIDE), &host.out, &["rw", "nosuid", "nodev"])?);
    if let Some(data) = &spec.data_dir {
        all.push(bind(&inside(spec, "DATA_DIR", DATA_DIR_INSIDE), data, &["rw", "nosuid", "nodev"])?);
    }
    if let Some(secrets) = &host.secrets {
        all.push(bind(SECRETS_INSIDE, secrets, &["ro", "nosuid", "nodev", "noexec"])?);
    }
    if let Some(resolv_conf) = &host.resolv_conf {
        all.push(bind("/etc/resolv.conf", resolv_conf, &["ro", "nosuid", "nodev", "noexec"])?);
    }
    Ok(all)
}

/// Where the job was told its folder is.
fn inside(spec: &LaunchSpec, name: &str, default: &str) -> String {
    let told = spec.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    told.filter(|path| path.starts_with('/')).unwrap_or(default).to_owned()
}

fn kernel(at: &str, kind: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    mount(at, kind, Path::new(kind), strings(options))
}

fn tmpfs(at: &str, bytes: u64, options: &[&str]) -> Result<Mount, OciSpecError> {
    let mut all = strings(options);
    all.extend(["mode=1777".to_owned(), format!("size={}", bytes.max(1))]); // size 0 would mean no limit
    mount(at, "tmpfs", Path::new("tmpfs"), all)
}

fn bind(at: &str, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    let mut all = strings(options);
    all.push("bind".to_owned());
    mount(at, "bind", source, all)
}

fn mount(at: &str, kind: &str, source: &Path, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default().destination(at).typ(kind).source(source).options(options).build()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

/// The kernel takes 64 bytes.
fn hostname(run_id: &str) -> String {
    run_id.chars().take(63).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::jobs::oci) fn spec() -> LaunchSpec {
        LaunchSpec {
            run_id: "r1".into(),
            rootfs: "/image".into(),
            argv: vec!["/bin/true".into()],
            env: vec![("A".into(), "b".into())],
            cwd: "work".into(),
            user: String::new(),
            read_only_root: true,
            network: NetworkSpec::None,
            cpu_millis: Some(500),
            memory_bytes: Some(1 << 20),
            pids: 10,
            timeout_ms: None,
            grace_ms: 1000,
            tmp_bytes: 4096,
            out_bytes: 4096,
            log_bytes: 4096,
            data_dir: None,
            args_json: "{}".into(),
            stdin: false,
            secret_names: vec![],
        }
    }

    fn host() -> HostFacts {
        HostFacts {
            rootfs: "/box/rootfs".into(),
            folder: "/box/folder".into(),
            out: "/box/out".into(),
            secrets: None,
            resolv_conf: None,
            network_namespace: None,
            cgroups_path: Some("/addonfs-r1".into()),
            limits: Limits { pids: Some(10), ..Limits::default() },
            unified_cgroups: false,
            rootless: false,
        }
    }

    fn json(spec: &LaunchSpec, host: &HostFacts) -> serde_json::Value {
        serde_json::to_value(config(spec, &JobUser::root(), host).unwrap()).unwrap()
    }

    #[test]
    fn a_secure_job_has_nothing_it_needs_not() {
        let doc = json(&spec(), &host());
        assert_eq!(doc["root"]["readonly"], true);
        let process = &doc["process"];
        assert_eq!(process["noNewPrivileges"], true);
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(process["capabilities"][set], serde_json::json!([]), "{set}");
        }
        assert!(process["rlimits"].as_array().is_none_or(Vec::is_empty));
        assert_eq!(process["cwd"], "/work");
        assert_eq!(
            doc["linux"]["resources"]["devices"],
            serde_json::json!([{"allow": false, "access": "rwm"}])
        );
        assert_eq!(doc["linux"]["resources"]["memory"], serde_json::Value::Null, "not offered by this host");
        let namespaces = doc["linux"]["namespaces"].to_string();
        for kind in ["pid", "ipc", "uts", "mount", "network", "cgroup"] {
            assert!(namespaces.contains(&format!("\"{kind}\"")), "{kind}");
        }
    }

    #[test]
    fn host_network_has_no_namespace_and_run_dir_follows_the_environment() {
        let mut spec = spec();
        spec.network = NetworkSpec::Host;
        spec.env.push(("RUN_DIR".into(), "/work/out".into()));
        let doc = json(&spec, &HostFacts { network_namespace: Some("/x".into()), ..host() });
        assert!(!doc["linux"]["namespaces"].to_string().contains("network"));
        assert!(doc["mounts"].as_array().unwrap().iter().any(|m| m["destination"] == "/work/out"));
    }
}
