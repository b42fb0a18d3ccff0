//! Where Python finds a module: `sys.path` as `site` makes it, and the files that a module may be.

use std::path::{Path, PathBuf};

use super::super::first::{Image, Place};

/// Minor versions of Python 3 that are looked for where the program's name does not say.
const MINORS: std::ops::Range<u32> = 4..40;

/// Tags of extension modules of one platform (PEP 3149); the stable interface and no tag at all come last.
const PLATFORMS: [&str; 4] =
    ["x86_64-linux-gnu", "aarch64-linux-gnu", "x86_64-linux-musl", "aarch64-linux-musl"];

/// Modules that are part of the program since 3.11 (`Python/frozen.c`): their files are not read.
const FROZEN: [&str; 17] = [
    "_collections_abc",
    "_sitebuiltins",
    "abc",
    "codecs",
    "genericpath",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "importlib.machinery",
    "importlib.util",
    "io",
    "ntpath",
    "os",
    "posixpath",
    "runpy",
    "site",
    "stat",
    "zipimport",
];

/// An installed Python.
#[derive(Debug)]
pub(super) struct Python {
    minor: u32,
    /// `sys.path`, without the folder of what is started.
    pub path: Vec<PathBuf>,
}

impl Python {
    /// The Python that a program is, by its name and by the library beside it. `named` is the program as the command
    /// names it, `real` where that leads: a virtual environment links to its Python.
    pub(super) fn of(image: &Image<'_>, named: &Path, real: &Path) -> Option<Self> {
        let name = real.file_name()?.to_str()?;
        let version = name.strip_prefix("python")?;
        if !version.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return None;
        }
        let prefix = real.parent()?.parent()?;
        let library = |minor: u32| prefix.join(format!("lib/python3.{minor}"));
        let is_there = |minor: &u32| image.file(&library(*minor).join("os.py")).is_some();
        let said = version.strip_prefix("3.").and_then(|minor| minor.parse().ok());
        let minor = said.into_iter().chain(MINORS).find(is_there)?;
        let library = library(minor);
        let mut path = vec![library.join("lib-dynload")];
        path.insert(0, library.clone());
        if let Some(environment) = named.parent().and_then(Path::parent)
            && image.file(&environment.join("pyvenv.cfg")).is_some()
        {
            path.push(environment.join(format!("lib/python3.{minor}/site-packages")));
        }
        let local = PathBuf::from(format!("usr/local/lib/python3.{minor}"));
        path.extend([
            local.join("dist-packages"),
            local.join("site-packages"),
            library.join("site-packages"),
        ]);
        path.push(prefix.join("lib/python3/dist-packages"));
        Some(Self { minor, path })
    }

    /// Whether a module is in the program itself.
    pub(super) fn is_frozen(&self, module: &str) -> bool {
        self.minor >= 11 && FROZEN.contains(&module)
    }

    /// What a module of this name is in one of `folders`, by the order of `importlib`'s `FileFinder`.
    pub(super) fn find(&self, image: &Image<'_>, folders: &[PathBuf], name: &str) -> Option<Found> {
        let mut plain = None;
        for folder in folders {
            let package = folder.join(name);
            let is_package = image.is_folder(&package);
            if is_package && let Some(mut found) = self.file(image, &package, "__init__") {
                found.folders = vec![package];
                return Some(found);
            }
            if let Some(found) = self.file(image, folder, name) {
                return Some(found);
            }
            if is_package {
                plain.get_or_insert_with(|| Found { read: None, source: None, folders: Vec::new() });
                plain.as_mut()?.folders.push(package);
            }
        }
        plain
    }

    /// What is read of `folder/name.py`: its compiled form, if it is there.
    pub(super) fn compiled(&self, image: &Image<'_>, folder: &Path, name: &str) -> Option<Place> {
        image.file(&folder.join(format!("__pycache__/{name}.cpython-3{}.pyc", self.minor)))
    }

    fn file(&self, image: &Image<'_>, folder: &Path, name: &str) -> Option<Found> {
        let tagged = PLATFORMS.iter().map(|platform| format!("{name}.cpython-3{}-{platform}.so", self.minor));
        let mut extensions = tagged.chain([format!("{name}.abi3.so"), format!("{name}.so")]);
        if let Some(place) = extensions.find_map(|file| image.file(&folder.join(file))) {
            return Some(Found { read: Some(place), source: None, folders: Vec::new() });
        }
        let source = image.file(&folder.join(format!("{name}.py")))?;
        let read = self.compiled(image, folder, name).unwrap_or(source);
        Some(Found { read: Some(read), source: Some(source), folders: Vec::new() })
    }
}

/// A module.
#[derive(Debug)]
pub(super) struct Found {
    /// The file that Python reads; none of a package without `__init__`.
    pub read: Option<Place>,
    /// Its source.
    pub source: Option<Place>,
    /// Where its submodules are, if it is a package.
    pub folders: Vec<PathBuf>,
}
