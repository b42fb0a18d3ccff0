//! What a Python program imports at its start, as far as its sources tell.
//!
//! Each module is a small file, and Python asks for one after the other: over a network a start is mostly waiting. Side by
//! side and in the order of their import they come with a few requests. A guess, like that of libraries: tried on Debian's
//! Python with `import pandas` it names 503 of the 531 modules that are read, and 8 that are not. Modules that compiled
//! code imports, and names that are made at run time, are not seen.

mod imports;
mod search;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use self::imports::{Import, imports};
use self::search::Python;
use super::first::{Image, Place};
use crate::fs::image::program::find_program;

/// Modules of one program: a large application imports two thousand.
const MAX_MODULES: usize = 8192;
/// Packages in packages and modules that import modules: as deep as Python's own limit of recursion lets them be.
const MAX_DEPTH: usize = 256;
/// Larger sources are data.
const MAX_SOURCE: u64 = 2 << 20;
/// What every start imports, before anything of the program.
const ALWAYS: [&str; 5] = ["encodings", "encodings.aliases", "encodings.utf_8", "site", "sitecustomize"];
/// What every start reads by way of the C library: the locale that Python sets where none is set (PEP 538), the character
/// sets that it looks through for that, the time zone.
const SYSTEM: [&str; 5] = [
    "usr/lib/locale/C.utf8/LC_CTYPE",
    "usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
    "usr/lib64/gconv/gconv-modules.cache",
    "etc/localtime",
];

/// The surroundings of a job, as the image sets them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'s> {
    /// `PATH`.
    pub path: &'s str,
    /// `PYTHONPATH`.
    pub python_path: Option<&'s str>,
    /// Where jobs start.
    pub workdir: &'s str,
}

/// The files that `command` reads after the interpreter and its libraries, in their order; none if it is no Python.
pub(super) fn imported(image: &Image<'_>, command: &[String], around: Surroundings<'_>) -> Vec<Place> {
    let Some((named, arguments)) = interpreter(image, command, around) else { return Vec::new() };
    let Some(real) = image.file(&named).and_then(|place| image.path(place)) else { return Vec::new() };
    let Some(python) = Python::of(image, &named, &real) else { return Vec::new() };
    let mut start = Start {
        image,
        python,
        path: Vec::new(),
        seen: HashSet::new(),
        read: HashSet::new(),
        order: Vec::new(),
    };
    start.run(&arguments, around);
    start.order
}

/// The program as it is named, without `/` before it, and its arguments; of a script, what its first line says.
fn interpreter(
    image: &Image<'_>,
    command: &[String],
    around: Surroundings<'_>,
) -> Option<(PathBuf, Vec<String>)> {
    let (program, arguments) = command.split_first()?;
    let named = |name: &str| {
        find_program(name, around.path, &|path: &str| image.file(path.as_ref()).map(|_| PathBuf::from(path)))
    };
    let program = named(program)?;
    let first = image.content(image.file(&program)?, 256).unwrap_or_default();
    let Some(line) = first.strip_prefix(b"#!") else { return Some((program, arguments.to_vec())) };
    let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next()?).into_owned();
    let mut words = line.split_whitespace();
    let mut by = words.next()?;
    if by.ends_with("/env") {
        by = words.find(|word| *word != "-S" && !word.contains('='))?;
    }
    let script = program.to_str()?.to_owned();
    Some((named(by)?, words.map(str::to_owned).chain([script]).chain(arguments.iter().cloned()).collect()))
}

struct Start<'i, 't> {
    image: &'i Image<'t>,
    python: Python,
    path: Vec<PathBuf>,
    seen: HashSet<String>,
    read: HashSet<Place>,
    order: Vec<Place>,
}

impl Start<'_, '_> {
    fn run(&mut self, arguments: &[String], around: Surroundings<'_>) {
        let workdir = Path::new(around.workdir);
        let what = started(arguments);
        let own = match what {
            Some(Started::Script(script)) => workdir.join(script).parent().map(Path::to_owned),
            _ => Some(workdir.to_owned()),
        };
        let said = around.python_path.unwrap_or_default().split(':').filter(|part| !part.is_empty());
        self.path.extend(own.into_iter().chain(said.map(PathBuf::from)));
        self.path.extend(self.python.path.iter().cloned());
        let system = SYSTEM.iter().filter_map(|path| self.image.file(path.as_ref()));
        self.order.extend(system.filter(|place| self.read.insert(*place)));
        for module in ALWAYS {
            self.import(module, 0);
        }
        match what {
            Some(Started::Code(code)) => self.scan(code.as_bytes(), "", true, 0),
            Some(Started::Module(module)) => {
                self.import("runpy", 0);
                let started =
                    if self.is_package(module) { format!("{module}.__main__") } else { module.to_owned() };
                self.import_as(&started, true, 0);
            }
            Some(Started::Script(script)) => {
                let place = self.image.file(&workdir.join(script));
                if let Some(source) = place.and_then(|place| self.image.content(place, MAX_SOURCE)) {
                    self.order.extend(place.filter(|place| self.read.insert(*place)));
                    self.scan(&source, "", true, 0);
                }
            }
            None => {}
        }
    }

    /// The imports of a source, in the package that it is of.
    fn scan(&mut self, source: &[u8], package: &str, started: bool, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        for Import { module, level, names } in imports(source, started) {
            let Some(module) = absolute(package, level, module) else { continue };
            self.import(&module, depth + 1);
            for name in names {
                self.import(&format!("{module}.{name}"), depth + 1);
            }
        }
    }

    /// A module and the packages that it is in.
    fn import(&mut self, name: &str, depth: usize) {
        self.import_as(name, false, depth);
    }

    fn import_as(&mut self, name: &str, started: bool, depth: usize) {
        let mut folders = self.path.clone();
        let ends = name.match_indices('.').map(|(at, _)| at).chain([name.len()]);
        for end in ends {
            let (full, own) = (&name[..end], name[..end].rsplit('.').next().unwrap_or_default());
            let Some(found) = self.python.find(self.image, &folders, own) else { return };
            if self.seen.len() < MAX_MODULES && self.seen.insert(full.to_owned()) {
                if !self.python.is_frozen(full) {
                    self.order.extend(found.read.filter(|place| self.read.insert(*place)));
                }
                if let Some(source) = found.source.and_then(|place| self.image.content(place, MAX_SOURCE)) {
                    let package = if found.folders.is_empty() {
                        full.rsplit_once('.').map_or("", |(p, _)| p)
                    } else {
                        full
                    };
                    self.scan(&source, package, started && end == name.len(), depth);
                }
            }
            folders = found.folders;
        }
    }

    fn is_package(&self, name: &str) -> bool {
        let mut folders = self.path.clone();
        for part in name.split('.') {
            let Some(found) = self.python.find(self.image, &folders, part) else { return false };
            folders = found.folders;
        }
        !folders.is_empty()
    }
}

/// What the interpreter's arguments start (`python3 --help`).
#[derive(Debug)]
enum Started<'a> {
    Code(&'a str),
    Module(&'a str),
    Script(&'a str),
}

fn started(arguments: &[String]) -> Option<Started<'_>> {
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            return Some(Started::Script(word));
        };
        if letters.starts_with('-') {
            words.by_ref().take(usize::from(letters == "-check-hash-based-pycs")).for_each(drop);
            continue;
        }
        let Some(at) = letters.find(['c', 'm', 'W', 'X']) else { continue };
        let rest = &letters[at..];
        let value = Some(&rest[1..]).filter(|value| !value.is_empty()).or_else(|| words.next())?;
        match rest.as_bytes()[0] {
            b'c' => return Some(Started::Code(value)),
            b'm' => return Some(Started::Module(value)),
            _ => {}
        }
    }
    None
}

/// The full name of a module that is imported in `package` with so many dots.
fn absolute(package: &str, level: usize, module: String) -> Option<String> {
    let Some(up) = level.checked_sub(1) else { return Some(module) };
    let mut base = package;
    for _ in 0..up {
        base = base.rsplit_once('.')?.0;
    }
    match (base.is_empty(), module.is_empty()) {
        (true, _) => None,
        (false, true) => Some(base.to_owned()),
        (false, false) => Some(format!("{base}.{module}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tree::{Times, Tree};
    use super::*;

    const AROUND: Surroundings<'_> =
        Surroundings { path: "/usr/bin:/bin", python_path: Some("/srv/more"), workdir: "/srv" };

    /// An installed Python of no real modules, a package with most ways to import, and a script.
    const FILES: [(&str, &str); 21] = [
        ("usr/bin/python3.11", "\x7fELF"),
        ("usr/lib/python3.11/os.py", "import stat, posixpath"),
        ("usr/lib/python3.11/stat.py", ""),
        ("usr/lib/python3.11/posixpath.py", "import genericpath"),
        ("usr/lib/python3.11/genericpath.py", ""),
        ("usr/lib/python3.11/site.py", "import os"),
        ("usr/lib/python3.11/encodings/__init__.py", "from . import aliases"),
        ("usr/lib/python3.11/encodings/aliases.py", ""),
        ("usr/lib/python3.11/encodings/utf_8.py", ""),
        ("usr/lib/python3.11/encodings/__pycache__/utf_8.cpython-311.pyc", "compiled"),
        ("usr/lib/python3.11/runpy.py", "import late"),
        ("usr/lib/python3.11/late.py", ""),
        ("usr/lib/python3.11/lib-dynload/_fast.cpython-311-x86_64-linux-gnu.so", ""),
        ("usr/lib/python3/dist-packages/pack/__init__.py", "from .inner import thing, deep\nimport _fast"),
        ("usr/lib/python3/dist-packages/pack/__main__.py", "import late"),
        ("usr/lib/python3/dist-packages/pack/inner/__init__.py", "from .. import sibling"),
        ("usr/lib/python3/dist-packages/pack/inner/deep.py", "import pack.gone, pack.sibling"),
        ("usr/lib/python3/dist-packages/pack/sibling.py", "def f():\n  import late\n"),
        ("srv/more/extra/plain.py", ""),
        (
            "srv/tool",
            "#!/usr/bin/env python3\nimport extra.plain\nif __name__ == '__main__':\n  import beside\n",
        ),
        ("srv/beside.py", ""),
    ];

    fn imported_by(command: &[&str]) -> Vec<String> {
        let temp = tempfile::tempdir().unwrap();
        for (path, text) in FILES {
            let path = temp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        std::os::unix::fs::symlink("python3.11", temp.path().join("usr/bin/python3")).unwrap();
        let trees = [Tree::walk(temp.path(), "", &[], Times::All(0)).unwrap()];
        let image = Image::new(&trees);
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let places = imported(&image, &command, AROUND);
        places.iter().map(|place| image.path(*place).unwrap().display().to_string()).collect()
    }

    const START: [&str; 3] = [
        "usr/lib/python3.11/encodings/__init__.py",
        "usr/lib/python3.11/encodings/aliases.py",
        "usr/lib/python3.11/encodings/__pycache__/utf_8.cpython-311.pyc",
    ];
    const PACK: [&str; 5] = [
        "usr/lib/python3/dist-packages/pack/__init__.py",
        "usr/lib/python3/dist-packages/pack/inner/__init__.py",
        "usr/lib/python3/dist-packages/pack/sibling.py",
        "usr/lib/python3/dist-packages/pack/inner/deep.py",
        "usr/lib/python3.11/lib-dynload/_fast.cpython-311-x86_64-linux-gnu.so",
    ];

    #[test]
    fn in_the_order_of_import() {
        assert_eq!(
            imported_by(&["/usr/bin/python3", "-X", "dev", "-c", "import pack"]),
            [&START[..], &PACK].concat()
        );
        let module = ["usr/lib/python3/dist-packages/pack/__main__.py"];
        // runpy is part of the program, what it imports is not
        let late = ["usr/lib/python3.11/late.py"];
        for command in [&["python3", "-m", "pack"][..], &["python3", "-Wd", "-Im", "pack", "-c"]] {
            assert_eq!(imported_by(command), [&START[..], &late, &PACK, &module].concat(), "{command:?}");
        }
        let script = ["srv/tool", "srv/more/extra/plain.py", "srv/beside.py"];
        for command in [
            &["/srv/tool"][..],
            &["tool"],
            &["python3.11", "-u", "tool", "-c", "x"],
            &["python3", "-Xdev", "-"],
            &["python3", "/srv/tool"],
        ] {
            let expected = match command {
                ["tool"] => Vec::new(),
                [.., "-"] => START.to_vec(),
                _ => [&START[..], &script].concat(),
            };
            assert_eq!(imported_by(command), expected, "{command:?}");
        }
    }

    #[test]
    fn other_programs_import_nothing() {
        for command in [&[][..], &["/usr/bin/gone"], &["/srv/beside.py"], &["/usr/lib/python3.11/stat.py"]] {
            assert_eq!(imported_by(command), Vec::<String>::new(), "{command:?}");
        }
    }
}
