//! The files of the configuration: `config/*.toml` and the ABIs. Each has a built-in twin, so the binary runs alone; a
//! file that is there replaces its twin as a whole.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::problem::{Problem, Source, nearest};

/// Largest file that is read, bytes; ABIs of compiler artifacts hold bytecode too.
const MAX_FILE_BYTES: u64 = 16 << 20;
const FILE_NAMES: [&str; 4] = ["default.toml", "chains.toml", "contracts.toml", "providers.toml"];
const BUILT_IN_CHAINS: &str = include_str!("../../config/chains.toml");
const BUILT_IN_CONTRACTS: &str = include_str!("../../config/contracts.toml");
/// ABIs by the path that `contracts.toml` knows them by.
const BUILT_IN_ABIS: [(&str, &str); 2] = [
    ("abi/erc20.json", include_str!("../../abi/erc20.json")),
    ("abi/erc721.json", include_str!("../../abi/erc721.json")),
];

/// The files as they were read.
pub(super) struct Files {
    /// `default.toml`, where there is one; its values stand over those of [`super::variables`].
    pub(super) defaults: Option<Arc<Source>>,
    pub(super) chains: Arc<Source>,
    pub(super) contracts: Arc<Source>,
    /// `providers.toml`, where there is one; it may hold keys.
    pub(super) providers: Option<Arc<Source>>,
    /// The directory that paths of ABIs start from: the one that holds the configuration directory. `None` where no file
    /// may be read.
    root: Option<PathBuf>,
    /// ABIs that are held in memory, by their path in `contracts.toml`; a file of that path stands over them.
    held: Vec<(String, Arc<Source>)>,
}

impl Files {
    /// Reads the directory, or the built-in files where none is named and there is no `./config`.
    pub(super) fn read(dir: Option<&Path>, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Self {
        let dir = match dir {
            Some(dir) if !dir.is_dir() => {
                problems.push(Problem::file(dir, "--config names no directory"));
                None
            }
            Some(dir) => Some(dir.to_owned()),
            None => Some(PathBuf::from("config")).filter(|dir| dir.is_dir()),
        };
        let mut open = |name: &str, built_in: Option<&str>| {
            let path = dir.as_ref().map(|dir| dir.join(name)).filter(|path| path.exists());
            match path.map(|path| read(&path)) {
                Some(Ok(source)) => Some(source),
                Some(Err(problem)) => {
                    problems.push(problem);
                    None
                }
                None => built_in.map(|text| Source::new(format!("built-in config/{name}"), text)),
            }
        };
        let undrawable = |source: Arc<Source>| Source::undrawable(&source.path, &source.text);
        let empty = || Source::new("nothing", "");
        let files = Self {
            defaults: open("default.toml", None).map(undrawable),
            chains: open("chains.toml", Some(BUILT_IN_CHAINS)).unwrap_or_else(empty),
            contracts: open("contracts.toml", Some(BUILT_IN_CONTRACTS)).unwrap_or_else(empty),
            providers: open("providers.toml", None).map(undrawable),
            root: Some(dir.as_ref().and_then(|dir| dir.parent()).map(Path::to_owned).unwrap_or_default()),
            held: built_in_abis(),
        };
        if let Some(dir) = &dir {
            warn_of_strangers(dir, warnings);
        }
        files
    }

    /// The built-in files, but this `contracts.toml` and this ABI beside the built-in ones; no file is ever read.
    pub(super) fn in_memory(contracts: Arc<Source>, abi: (&str, &str)) -> Self {
        let mut held = built_in_abis();
        held.push((abi.0.to_owned(), Source::new(abi.0, abi.1)));
        let chains = Source::new("built-in config/chains.toml", BUILT_IN_CHAINS);
        Self { defaults: None, chains, contracts, providers: None, root: None, held }
    }

    /// An ABI by its path in `contracts.toml`.
    pub(super) fn abi(&self, path: &str) -> Result<Arc<Source>, String> {
        let full = self.root.as_ref().map(|root| root.join(path));
        if let Some(full) = full.as_ref().filter(|full| full.exists()) {
            return read(full).map_err(|problem| problem.line());
        }
        let missing = || format!("there is no file {}", full.as_deref().unwrap_or(Path::new(path)).display());
        self.held.iter().find(|(name, _)| name == path).map(|(_, abi)| Arc::clone(abi)).ok_or_else(missing)
    }

    /// The names that `contracts.toml` and `providers.toml` take from the environment.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = String> + '_ {
        let name_at_start = |text: &str| {
            let end = text.find(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_').unwrap_or(text.len());
            text.get(..end).unwrap_or_default().to_owned()
        };
        let texts = std::iter::once(&self.contracts).chain(&self.providers).map(|source| source.text.as_str());
        texts.flat_map(|text| text.split("${").skip(1)).map(name_at_start).filter(|name| !name.is_empty())
    }
}

fn built_in_abis() -> Vec<(String, Arc<Source>)> {
    BUILT_IN_ABIS
        .iter()
        .map(|(name, text)| ((*name).to_owned(), Source::new(format!("built-in {name}"), *text)))
        .collect()
}

fn read(path: &Path) -> Result<Arc<Source>, Problem> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| Problem::file(path, format!("cannot be read: {error}")))?;
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    match read {
        Err(error) => Err(Problem::file(path, format!("cannot be read: {error}"))),
        Ok(bytes) if bytes as u64 > MAX_FILE_BYTES => {
            Err(Problem::file(path, format!("is larger than {} MiB", MAX_FILE_BYTES >> 20)))
        }
        Ok(_) => Ok(Source::new(path.display().to_string(), text)),
    }
}

/// A file beside ours that looks like configuration and is not read.
fn warn_of_strangers(dir: &Path, warnings: &mut Vec<String>) {
    let Ok(entries) = dir.read_dir() else { return };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let is_toml = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "toml");
    for name in names.iter().filter(|name| is_toml(name) && !FILE_NAMES.contains(&name.as_str())) {
        let path = dir.join(name);
        warnings.push(format!("{} is not read; {}", path.display(), nearest(name, FILE_NAMES)));
    }
}
