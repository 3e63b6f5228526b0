//! Hugging Face's hub and its cache on this machine, where the environment says that they are, as huggingface_hub reads it
//! (its `constants.py`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo};

use crate::checkpoint::{INDEX, WEIGHTS, part_names};
use crate::pretrained::{BESIDE_TOKENIZER, CONFIG, TOKENIZER, VOCABULARY};

/// How often a file is asked for whose transfer breaks; each time it goes on where it broke.
const ATTEMPTS: usize = 4;

/// The hub as the environment describes it.
#[derive(Debug, PartialEq, Eq)]
struct Hub {
    /// The folder of the cached models, absolute.
    cache: PathBuf,
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// The hub that these environment variables describe; one that is empty counts as unset.
    ///
    /// # Errors
    /// When no variable says where the cache is and there is no home folder. The text says so.
    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from);
        let path = |value: OsString| match (Path::new(&value).strip_prefix("~"), &user) {
            (Ok(rest), Some(user)) => user.join(rest),
            _ => PathBuf::from(value),
        };
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().trim().to_string());
        let home = variable("HF_HOME").map(path).or_else(|| {
            let caches = variable("XDG_CACHE_HOME").map(path).or_else(|| Some(user.as_ref()?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(path);
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")));
        let cache =
            cache.ok_or("there is no home folder for the hub's cache: set HF_HOME to a folder that can be written")?;
        let token_file = variable("HF_TOKEN_PATH").map(path).or_else(|| Some(home?.join("token")));
        let in_file = || std::fs::read_to_string(token_file?).ok().map(|token| token.trim().to_string());
        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let is_on = |name: &str| {
            text(name).is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()))
        };
        Ok(Self {
            cache: std::path::absolute(&cache).map_err(|error| format!("{}: {error}", cache.display()))?,
            endpoint: text("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_string()),
            token: given.or_else(in_file).filter(|token| !token.is_empty()),
            offline: is_on(if variable("HF_HUB_OFFLINE").is_some() {
                "HF_HUB_OFFLINE"
            } else {
                "TRANSFORMERS_OFFLINE"
            }),
        })
    }

    /// The model of that id, its files fetched or, where the cache has them, found.
    fn model(&self, name: &str) -> Result<PathBuf, String> {
        let files = HubModel { hub: self, name, cached: Cache::new(self.cache.clone()).model(name.into()) };
        let is_new = [TOKENIZER, VOCABULARY].iter().all(|file| files.cached.get(file).is_none());
        let path = files.fetch(CONFIG)?;
        if let Err(error) = files.fetch(WEIGHTS) {
            // Of a checkpoint in parts there is an index in its place.
            let index = files.fetch(INDEX).map_err(|_| error)?;
            for part in part_names(&index).map_err(|e| e.to_string())? {
                files.fetch(&part)?;
            }
        }
        if let Err(error) = files.fetch(TOKENIZER) {
            files.fetch(VOCABULARY).map_err(|_| error)?;
        }
        for file in BESIDE_TOKENIZER.iter().filter(|_| is_new) {
            // A repository need not have it, and what it would say is then not said.
            let _ = files.fetch(file);
        }
        path.parent().map(Path::to_path_buf).ok_or_else(|| "the hub's cache has no folder".into())
    }
}

/// The files of one model.
struct HubModel<'a> {
    hub: &'a Hub,
    name: &'a str,
    cached: CacheRepo,
}

impl HubModel<'_> {
    fn fetch(&self, file: &str) -> Result<PathBuf, String> {
        match self.cached.get(file) {
            Some(path) => Ok(path),
            None if self.hub.offline => {
                Err(format!("{} has no {file} of it, and HF_HUB_OFFLINE is set", self.hub.cache.display()))
            }
            None => self.download(file).map_err(|error| self.explained(error)),
        }
    }

    fn download(&self, file: &str) -> Result<PathBuf, String> {
        let repository = self.repository()?;
        let mut attempt = 1;
        loop {
            match repository.get(file) {
                Err(ApiError::IoError(_)) if attempt < ATTEMPTS => attempt += 1,
                result => return result.map_err(|error| error.to_string()),
            }
        }
    }

    fn repository(&self) -> Result<ApiRepo, String> {
        let Hub { cache, endpoint, token, .. } = self.hub;
        let mut builder = ApiBuilder::from_cache(Cache::new(cache.clone())).with_token(token.clone());
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        Ok(builder.build().map_err(|error| error.to_string())?.model(self.name.into()))
    }

    /// An error of the hub, with what to do where its status says that.
    fn explained(&self, error: String) -> String {
        let is_refused = ["401", "403"].iter().any(|status| error.contains(status));
        match (is_refused, &self.hub.token) {
            (true, None) => {
                format!("{error}: it is private or gated, or is not there; set HF_TOKEN to a token that may read it")
            }
            (true, Some(_)) => format!("{error}: the token may not read it, or it is not there"),
            _ => error,
        }
    }
}

/// The folder of a model in the hub's cache, its files fetched where they are not there.
pub(crate) fn model(name: &str) -> Result<PathBuf, String> {
    if !is_id(name) {
        return Err("that is no hub id".into());
    }
    Hub::from_variables(|name| std::env::var_os(name))?.model(name)
}

/// Whether a model of that name would be asked for on the network.
pub(crate) fn is_asked(name: &str) -> bool {
    let hub = Hub::from_variables(|name| std::env::var_os(name));
    is_id(name) && hub.is_ok_and(|hub| !hub.offline && Cache::new(hub.cache).model(name.into()).get(CONFIG).is_none())
}

/// The folder of a model that the hub's cache has.
pub(crate) fn cached(name: &str) -> Option<PathBuf> {
    let hub = Hub::from_variables(|name| std::env::var_os(name)).ok().filter(|_| is_id(name))?;
    Cache::new(hub.cache).model(name.into()).get(CONFIG)?.parent().map(Path::to_path_buf)
}

/// Whether a name can be that of a model on the hub.
fn is_id(name: &str) -> bool {
    name.split('/').count() <= 2 && !name.starts_with(['.', '/', '~'])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub, String> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        Hub::from_variables(|name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn the_cache_lies_where_huggingface_hub_has_it() {
        // huggingface_hub/constants.py: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else below HF_HOME, XDG_CACHE_HOME or the home folder.
        for (variables, expected) in [
            (&[("HOME", "/home/a")][..], "/home/a/.cache/huggingface/hub"),
            (&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/caches")], "/caches/huggingface/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", "~/hf")], "/home/a/hf/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", ""), ("HF_HUB_CACHE", "")], "/home/a/.cache/huggingface/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
        ] {
            assert_eq!(hub(variables).unwrap().cache, Path::new(expected), "{variables:?}");
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(hub(&[("HF_HUB_CACHE", "cache")]).unwrap().cache, here.join("cache"));
        assert!(hub(&[]).unwrap_err().contains("HF_HOME"));
    }

    #[test]
    fn the_token_is_that_of_the_variable_or_else_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "of-the-file\n").unwrap();
        let token = |more: &[(&str, &str)]| hub(&[&[("HF_HOME", home)][..], more].concat()).unwrap().token;
        assert_eq!(token(&[]).as_deref(), Some("of-the-file"));
        assert_eq!(token(&[("HF_TOKEN", "")]).as_deref(), Some("of-the-file"));
        assert_eq!(token(&[("HF_TOKEN", " mine ")]).as_deref(), Some("mine"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("old"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
    }

    #[test]
    fn offline_is_any_of_the_usual_words() {
        let offline = |value| hub(&[("HOME", "/"), ("HF_HUB_OFFLINE", value)]).unwrap().offline;
        assert!(["1", "ON", "yes", "True"].into_iter().all(offline));
        assert!(["0", "", "no", "false"].into_iter().all(|value| !offline(value)));
    }

    /// A hub on this machine as huggingface.co answers: metadata by a request for the first byte, parts of weights behind a redirect, 404
    /// for what is not there, 401 for a private model without a token. The first transfer of the second part breaks in its middle.
    fn server(files: Vec<(&'static str, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut has_broken = false;
            for mut stream in listener.incoming().flatten() {
                let lines: Vec<String> =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let header = |name: &str| {
                    lines
                        .iter()
                        .find_map(|line| line.to_lowercase().strip_prefix(name).map(|rest| rest.trim().to_string()))
                };
                let asked = lines[0].split(' ').nth(1).unwrap().to_string();
                let (folder, name) = asked.rsplit_once('/').unwrap();
                let mut answer = |status: &str, headers: &str, body: &[u8], length: usize| {
                    let head =
                        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
                    let _ = stream.write_all(&[head.as_bytes(), body].concat());
                };
                let Some((_, bytes)) = files.iter().find(|(file, _)| *file == name) else {
                    answer("404 Not Found", "", b"", 0);
                    continue;
                };
                if folder.contains("private") && header("authorization:").as_deref() != Some("bearer right") {
                    answer("401 Unauthorized", "", b"", 0);
                    continue;
                }
                let headers = format!("X-Repo-Commit: c0ffee\r\nETag: \"of-{name}\"\r\n");
                if name.ends_with(".safetensors") && !folder.starts_with("/elsewhere") {
                    answer("302 Found", &format!("{headers}Location: /elsewhere/{name}\r\n"), b"", 0);
                    continue;
                }
                let range = header("range: bytes=").unwrap_or("0-".into());
                let (from, to) = range.split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to = to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
                let headers = format!("{headers}Content-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
                let breaks = name.contains("00002") && to - from > 1 && !std::mem::replace(&mut has_broken, true);
                let body = &bytes[from..if breaks { from + (to - from) / 2 } else { to }];
                answer("206 Partial Content", &headers, body, to - from);
            }
        });
        address
    }

    #[test]
    fn a_checkpoint_in_parts_is_fetched_through_redirects_and_after_a_broken_transfer_and_found_again_offline() {
        // In a process of its own, whatever proxy this one is told to use.
        let Ok(cache) = std::env::var("HUB_TEST_CACHE") else {
            let folder = tempfile::tempdir().unwrap();
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "hub::tests::a_checkpoint_in_parts_is_fetched_through_redirects_and_after_a_broken_transfer_and_found_again_offline"]);
            child.env("HUB_TEST_CACHE", folder.path()).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        };
        let part = |seed: u32| {
            (0..50_000_u32).map(|i| (i.wrapping_mul(2_654_435_761 + seed) >> 13) as u8).collect::<Vec<u8>>()
        };
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{}"}}}}"#, names[0], names[1]);
        let address = server(vec![
            ("config.json", b"{}".to_vec()),
            (INDEX, index.into_bytes()),
            (names[0], part(1)),
            (names[1], part(2)),
            ("tokenizer.json", b"{}".to_vec()),
            ("tokenizer_config.json", b"{}".to_vec()),
        ]);
        let hub = |token: Option<&str>, offline| Hub {
            cache: cache.clone().into(),
            endpoint: Some(address.clone()),
            token: token.map(String::from),
            offline,
        };
        let folder = hub(None, false).model("lab/tiny").unwrap();
        assert_eq!(hub(None, true).model("lab/tiny").unwrap(), folder);
        for (name, seed) in names.into_iter().zip(1..) {
            assert!(std::fs::read(folder.join(name)).unwrap() == part(seed), "{name}");
        }
        assert!(folder.join("tokenizer_config.json").exists() && !folder.join("special_tokens_map.json").exists());

        let refused = hub(None, false).model("lab/private").unwrap_err();
        assert!(refused.contains("401") && refused.contains("HF_TOKEN"), "{refused}");
        let refused = hub(Some("wrong"), false).model("lab/private").unwrap_err();
        assert!(refused.contains("the token may not read it"), "{refused}");
        assert!(hub(Some("right"), false).model("lab/private").is_ok());
        let absent = hub(None, true).model("lab/other").unwrap_err();
        assert!(absent.contains("config.json") && absent.contains("HF_HUB_OFFLINE"), "{absent}");
    }
}
