//! `addonfs schema`: the JSON Schema of the manifest, for editors.

use std::io::Write as _;
use std::process::ExitCode;

use crate::policy::addon::schema;

/// Print the JSON Schema of add-on manifests, for editors.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs schema > ~/.config/addonfs-manifest.schema.json
  # then, as the first line of a manifest.yaml, for the YAML language server:
  # yaml-language-server: $schema=/home/me/.config/addonfs-manifest.schema.json")]
pub(crate) struct SchemaArgs {}

/// Prints it.
pub(crate) fn run(_: SchemaArgs) -> anyhow::Result<ExitCode> {
    std::io::stdout().lock().write_all(schema::TEXT.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
