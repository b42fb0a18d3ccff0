//! The section `registries`: for a registry's name its mirrors in their order, and whose certificates count.

use std::collections::BTreeMap;
use std::path::Path;

use super::Files;
use crate::fetch::registry::{Authority, Mirror, Registries, RegistryHosts};
use crate::policy::fields::{Field, Fields, Report};
use crate::policy::reference;

/// Reads the section. Certificates are read, too, so that what is wrong with them is told at once.
pub(super) fn registries(section: &Field<'_>, base: &Path, files: &Files, report: &mut Report) -> Registries {
    let mut named = BTreeMap::new();
    let Some(fields) = section.fields(report) else { return Registries::default() };
    for (name, field) in fields.named() {
        let host = match reference::registry_host(name) {
            Ok(host) => host,
            Err(reason) => {
                report.problem(&field, reason, "write the name as references have it, HOST[:PORT]");
                continue;
            }
        };
        let Some(mut fields) = field.fields(report) else { continue };
        let hosts = hosts(&mut fields, base, files, report);
        fields.finish(report);
        if hosts.mirrors_only && hosts.mirrors.is_empty() {
            report.problem(&field, "fallback: false leaves no host to ask", "name a mirror");
        }
        if named.insert(host, hosts).is_some() {
            report.problem(&field, format!("{name} is named twice"), "");
        }
    }
    Registries::new(named)
}

fn hosts(fields: &mut Fields<'_>, base: &Path, files: &Files, report: &mut Report) -> RegistryHosts {
    let mirrors = fields.take("mirrors").and_then(|f| f.items(report)).unwrap_or_default();
    let mirrors = mirrors.iter().filter_map(|item| mirror(item, base, files, report)).collect();
    let fallback = fields.take("fallback").and_then(|f| f.flag(report)).unwrap_or(true);
    RegistryHosts { mirrors, mirrors_only: !fallback, authority: authority(fields, base, files, report) }
}

fn mirror(item: &Field<'_>, base: &Path, files: &Files, report: &mut Report) -> Option<Mirror> {
    let mut fields = item.fields(report)?;
    let insecure = fields.take("insecure").and_then(|f| f.flag(report)).unwrap_or(false);
    let resolve = fields.take("resolve").and_then(|f| f.flag(report)).unwrap_or(false);
    let authority = authority(&mut fields, base, files, report);
    let mirror = match fields.take("url") {
        None => {
            report.problem(item, "a mirror without url", "");
            None
        }
        Some(field) => field.text(report).and_then(|url| match Mirror::new(&url, insecure) {
            Ok(mut mirror) => {
                (mirror.resolve, mirror.authority) = (resolve, authority);
                Some(mirror)
            }
            Err(reason) => {
                report.problem(&field, reason, "");
                None
            }
        }),
    };
    fields.finish(report);
    mirror
}

fn authority(fields: &mut Fields<'_>, base: &Path, files: &Files, report: &mut Report) -> Option<Authority> {
    let field = fields.take("ca")?;
    let path = base.join(field.text(report)?);
    let read = || -> Result<Authority, String> {
        let pem = files.read(&path).map_err(|error| format!("cannot be read: {error}"))?;
        Authority::from_pem(&pem)
    };
    match read() {
        Ok(authority) => Some(authority),
        Err(reason) => {
            report.problem(&field, format!("{} {reason}", path.display()), "");
            None
        }
    }
}
