//! Tables over config files and helpers.

use super::*;

fn credential(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.into(), password: Secret::new(password) }
}

fn helper() -> HelperRunner {
    Arc::new(|program, server| match (program, server) {
        ("docker-credential-pass", "ghcr.io") => {
            Ok(r#"{"ServerURL":"ghcr.io","Username":"h","Secret":"s"}"#.into())
        }
        ("docker-credential-pass", "https://index.docker.io/v1/") => {
            Ok(r#"{"Username":"<token>","Secret":"refresh"}"#.into())
        }
        ("docker-credential-pass", _) => Err("credentials not found in native keychain\n".into()),
        ("docker-credential-junk", _) => Ok("not json".into()),
        _ => Err("exec: not found".into()),
    })
}

fn find(text: &str, registry: &str, repository: &str) -> Result<Credential, FetchError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    Credentials::from_docker_config(Some(path), |_| None, helper()).find(registry, repository)
}

#[test]
fn entries_of_config_files() {
    let two = r#"{"auths":{"h.io":{"auth":"YTpi"},"h.io/team":{"auth":"Yzpk"}}}"#;
    let hub = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#;
    let stored = r#"{"auths":{"ghcr.io":{}},"credsStore":"pass"}"#;
    let table = [
        // the fields as files in the wild carry them
        (r#"{"username":"u","password":"p"}"#, "ghcr.io", "a", credential("u", "p")),
        (r#"{"auths":{"ghcr.io":{"auth":"cm9ib3Q6dG9r"}}}"#, "ghcr.io", "a", credential("robot", "tok")),
        (
            r#"{"auths":{"ghcr.io":{"username":"alice","password":"secret"}}}"#,
            "ghcr.io",
            "a",
            credential("alice", "secret"),
        ),
        (r#"{"auths":{"ghcr.io":{}}}"#, "ghcr.io", "a", Credential::Anonymous),
        (r#"{"auths":{"h.io":{"auth":"not-base64!@#"}}}"#, "h.io", "a", Credential::Anonymous),
        (r#"{"auths":{"h.io":{"auth":"bm9jb2xvbg=="}}}"#, "h.io", "a", Credential::Anonymous),
        (r#"{"auths":{"h.io":{"auth":"dXNlcjpwYTpzcw=="}}}"#, "h.io", "a", credential("user", "pa:ss")),
        (r#"{"auths":{"h.io":{"auth":"dXNlcjpwYTpzcw"}}}"#, "h.io", "a", credential("user", "pa:ss")),
        (
            r#"{"auths":{"h.io":{"auth":"YTpi","identitytoken":"t"}}}"#,
            "h.io",
            "a",
            Credential::Identity(Secret::new("t")),
        ),
        (r#"{"auths":{"h.io":{"registrytoken":"t"}}}"#, "h.io", "a", Credential::Bearer(Secret::new("t"))),
        ("{}", "h.io", "a", Credential::Anonymous),
        // keys: schemes, ports, namespaces
        (two, "h.io", "team/x", credential("c", "d")),
        (two, "h.io", "team", credential("c", "d")),
        (two, "h.io", "teamwork/x", credential("a", "b")),
        (two, "h.io:443", "team/x", Credential::Anonymous),
        (two, "evil-h.io", "team/x", Credential::Anonymous),
        (r#"{"auths":{"https://h.io:5000/v2/":{"auth":"YTpi"}}}"#, "h.io:5000", "x", credential("a", "b")),
        (hub, "docker.io", "library/alpine", credential("a", "b")),
        // helpers
        (stored, "ghcr.io", "a", credential("h", "s")),
        (stored, "docker.io", "a", Credential::Identity(Secret::new("refresh"))),
        (stored, "other.io", "a", Credential::Anonymous),
        (r#"{"credHelpers":{"ghcr.io":"pass"}}"#, "ghcr.io", "a", credential("h", "s")),
        (r#"{"credHelpers":{"ghcr.io":"pass"}}"#, "h.io", "a", Credential::Anonymous),
        (
            r#"{"auths":{"ghcr.io":{"auth":"YTpi"}},"credsStore":"pass"}"#,
            "ghcr.io",
            "a",
            credential("a", "b"),
        ),
    ];
    for (text, registry, repository, expected) in table {
        assert_eq!(find(text, registry, repository).unwrap(), expected, "{text} {registry}/{repository}");
    }
}

#[test]
fn refusals_name_the_file_or_the_helper() {
    let table = [
        ("{\"auths\":\n [\"hunter2\"]}", "line 2"),
        (r#"{"credHelpers":{"h.io":"../../bin/sh"}}"#, "not the name of a helper"),
        (r#"{"credHelpers":{"h.io":"absent"}}"#, "docker-credential-absent: exec: not found"),
        (r#"{"credsStore":"junk"}"#, "did not answer with JSON"),
    ];
    for (text, words) in table {
        let error = find(text, "h.io", "a").unwrap_err();
        assert_eq!(error.class, Class::Unauthorized, "{text}");
        assert!(error.message.contains(words) && error.message.contains("config.json"), "{error}");
        assert!(!error.message.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_named_file_must_exist_and_a_usual_one_need_not() {
    let named = Credentials::from_docker_config(Some("/nope/missing.json".into()), |_| None, helper());
    let error = named.find("ghcr.io", "a").unwrap_err();
    assert!(error.retryable && error.message.contains("/nope/missing.json"), "{error}");
    let usual = Credentials::from_docker_config(None, |_| Some("/nope".into()), helper());
    assert_eq!(usual.find("ghcr.io", "a").unwrap(), Credential::Anonymous);
    assert_eq!(usual.places(), "/nope/config.json, /nope/containers/auth.json");
}

#[test]
fn the_usual_places_in_order() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().to_owned();
    std::fs::create_dir_all(root.join(".docker")).unwrap();
    std::fs::create_dir_all(root.join("run/containers")).unwrap();
    std::fs::write(root.join(".docker/config.json"), r#"{"auths":{"a.io":{"auth":"YTpi"}}}"#).unwrap();
    std::fs::write(
        root.join("run/containers/auth.json"),
        r#"{"auths":{"a.io":{"auth":"eDp5"},"b.io":{"auth":"Yzpk"}}}"#,
    )
    .unwrap();
    let env = |name: &str| match name {
        "HOME" => Some(root.clone().into_os_string()),
        "XDG_RUNTIME_DIR" => Some(root.join("run").into_os_string()),
        _ => None,
    };
    let found = Credentials::from_docker_config(None, env, helper());
    assert_eq!(found.find("a.io", "x").unwrap(), credential("a", "b"));
    assert_eq!(found.find("b.io", "x").unwrap(), credential("c", "d"));
}

#[test]
fn nothing_secret_is_printed() {
    let shown = format!("{:?}", (credential("u", "hunter2"), Credential::Identity(Secret::new("hunter2"))));
    assert!(!shown.contains("hunter2"), "{shown}");
    let fixed = Credentials::fixed(credential("u", "hunter2"));
    assert_eq!(format!("{fixed:?}"), "Credentials(given)");
}
