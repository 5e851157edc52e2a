//! Where values come from: the layers, later ones over earlier ones, and for each value the place it was found in.
//!
//! defaults < `config/default.toml` < AWS secret < `.env` < environment or its `NAME_FILE` < flags. An empty value
//! counts as absent in every layer. The environment comes in as a map: nothing here reads the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    environment::{read_dotenv, read_mounted, warn_of_near_misses},
    files::Files,
    problem::{Place, Problem, nearest},
    raw, variables,
};

/// What the configuration is read from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The directory of `default.toml`, `chains.toml`, `contracts.toml` and `providers.toml` (`--config`); `None` means `./config` where
    /// that is a directory, otherwise the built-in files.
    pub config_dir: Option<PathBuf>,
    /// The `.env` file; read where it exists.
    pub dotenv: Option<PathBuf>,
    /// The environment, by name.
    pub environment: BTreeMap<String, String>,
    /// Values of flags, by the name of the variable that each stands for: `START_BLOCK` for `--start-block`.
    pub flags: BTreeMap<&'static str, String>,
    /// What the settings are for.
    pub purpose: Purpose,
}

/// What settings are for, and so what must be among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To listen: everything must be there.
    #[default]
    Listen,
    /// To look at the state or change it: an endpoint may be missing.
    Operate,
}

impl Sources {
    /// The process's own environment and `./.env`.
    #[must_use]
    pub fn of_process() -> Self {
        let unicode = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            dotenv: Some(PathBuf::from(".env")),
            environment: std::env::vars_os().filter_map(unicode).collect(),
            ..Self::default()
        }
    }
}

/// A value and where it was found.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) value: String,
    pub(super) place: Place,
}

/// The values of an AWS secret, with the secret's name.
pub(super) struct Fetched {
    pub(super) name: String,
    pub(super) values: BTreeMap<String, String>,
}

/// Every value that was given, by name.
pub(super) struct Layers {
    values: BTreeMap<String, Given>,
}

impl Layers {
    /// Lays the layers over each other.
    pub(super) fn gather(
        sources: &Sources,
        files: &Files,
        fetched: Option<&Fetched>,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<String>,
    ) -> Self {
        let wanted: BTreeSet<String> =
            variables::all().map(|one| one.name.to_owned()).chain(files.placeholders()).collect();
        let mut layers = Self { values: BTreeMap::new() };
        for variable in variables::all() {
            layers.put(variable.name, variable.default.to_owned(), Place::Missing);
        }
        layers.put_default_file(files, problems);
        if let Some(fetched) = fetched {
            layers.put_fetched(fetched, &wanted, problems);
        }
        if let Some(path) = &sources.dotenv {
            let given = read_dotenv(path, problems);
            layers.put_environment(&given, &path.display().to_string(), &wanted, problems);
            warn_of_near_misses(&given, &path.display().to_string(), &wanted, warnings);
        }
        layers.put_environment(&sources.environment, "environment", &wanted, problems);
        warn_of_near_misses(&sources.environment, "environment", &wanted, warnings);
        for (name, value) in &sources.flags {
            let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
            layers.put(name, value.clone(), Place::Named(flag));
        }
        layers
    }

    /// The value of a variable, where it has one.
    pub(super) fn get(&self, name: &str) -> Option<&Given> {
        self.values.get(name)
    }

    fn put(&mut self, name: &str, value: String, place: Place) {
        if !value.trim().is_empty() {
            self.values.insert(name.to_owned(), Given { value, place });
        }
    }

    fn put_default_file(&mut self, files: &Files, problems: &mut Vec<Problem>) {
        let Some(source) = &files.defaults else { return };
        let names: Vec<String> = variables::all().map(|variable| variable.name.to_lowercase()).collect();
        let document = raw::parse(source, problems);
        for (key, value) in document.get_ref() {
            let Some(variable) = variables::all().find(|one| one.name.to_lowercase() == *key.get_ref()) else {
                let text = format!("unknown key '{}'", key.get_ref());
                let mend = nearest(key.get_ref(), names.iter().map(String::as_str));
                problems.push(Problem::at(source, key.span(), text).mend(mend));
                continue;
            };
            match raw::scalar(value.get_ref()) {
                Some(scalar) => self.put(variable.name, scalar, Place::Span(Arc::clone(source), value.span())),
                None => problems.push(Problem::at(
                    source,
                    value.span(),
                    format!("'{}' must be a string, a whole number, true or false", key.get_ref()),
                )),
            }
        }
    }

    fn put_fetched(&mut self, fetched: &Fetched, wanted: &BTreeSet<String>, problems: &mut Vec<Problem>) {
        let place = Place::Named(format!("AWS secret {}", fetched.name));
        for (name, value) in &fetched.values {
            if wanted.contains(name) {
                self.put(name, value.clone(), place.clone());
            } else {
                problems.push(
                    Problem::new(place.clone(), format!("unknown key '{name}'"))
                        .mend(nearest(name, wanted.iter().map(String::as_str))),
                );
            }
        }
    }

    /// One layer of environment variables: each may be given as itself or as the path of a file that holds it.
    fn put_environment(
        &mut self,
        given: &BTreeMap<String, String>,
        layer: &str,
        wanted: &BTreeSet<String>,
        problems: &mut Vec<Problem>,
    ) {
        for name in wanted {
            let file_name = format!("{name}_FILE");
            let direct = given.get(name).filter(|value| !value.is_empty());
            // A variable whose own name ends in _FILE (TOKENS_FILE) is never the mounted form of another one here.
            let mounted = given.get(&file_name).filter(|path| !path.is_empty() && !wanted.contains(&file_name));
            if direct.is_some() && mounted.is_some() {
                let text = format!("{name} and {file_name} are both set");
                problems.push(Problem::new(Place::Named(layer.to_owned()), text).mend("remove one of them"));
            }
            match (direct, mounted) {
                (Some(value), _) => self.put(name, value.clone(), Place::Named(layer.to_owned())),
                (None, Some(path)) => match read_mounted(Path::new(path)) {
                    Ok(value) => self.put(name, value, Place::Named(format!("{file_name}={path}"))),
                    Err(text) => problems.push(Problem::new(
                        Place::Named(format!("{file_name}={path}")),
                        format!("{file_name} names a file that {text}"),
                    )),
                },
                (None, None) => {}
            }
        }
    }
}
