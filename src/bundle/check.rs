//! `--verify`, `--list` and `--gc`: what there is, and whether it is as it was.

use crate::arguments::Arguments;
use crate::compare::compare;
use crate::error::{Context, Error, Result, escape};
use crate::fill::Fill;
use crate::layers::Budget;
use crate::make::{beside, make_working_directory, open_store, origin};
use crate::overlay::Overlay;
use crate::progress::Progress;
use crate::rootless::Ids;
use crate::source::name::Opened;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Unpacks the image of a bundle anew, and compares. Returns what is to be told, and whether all is as
/// it must be.
pub fn verify(
    arguments: &Arguments,
    bundle: &Path,
    ids: &Ids,
    progress: &Progress,
) -> Result<(String, bool)> {
    let origin = origin(bundle)?;
    let name = arguments.image.as_deref().unwrap_or(&origin.image);
    if name == "-" {
        return Err(
            Error::new("the bundle's image came from stdin").hint("name it: damda bundle --verify DIR IMAGE")
        );
    }
    let (bundle, staging) = beside(bundle)?;
    let opened = Opened::open(name, &arguments.from, &arguments.limits, &staging.path)?;
    let image = opened.resolve(&arguments.from, &arguments.limits)?;
    let digest = image.as_ref().map(|image| &image.digest);
    if digest != origin.digest.as_ref() && arguments.image.is_none() {
        let now = digest.map(ToString::to_string).unwrap_or_default();
        return Err(Error::new(format!("{} is another image by now: {now}", escape(name))));
    }
    let expected = match (&image, opened.source(), &opened) {
        (Some(image), Some(source), _) => {
            let limits = &arguments.limits;
            let path = staging.path.join("rootfs");
            let fill = Fill {
                source,
                image,
                ownership: ids.ownership,
                limits,
                budget: Budget::new(limits.size),
                progress,
            };
            fill.in_place(&path, &staging.path.join("layers"))?;
            path
        }
        (_, _, Opened::Directory(path)) => path.clone(),
        _ => return Err(Error::new("an image without a source")),
    };
    let expected = OwnedFd::from(File::open(expected)?);
    if image.is_some() {
        // It was made with the bundle if the image lacks it.
        make_working_directory(expected.try_clone()?, &working_directory(&bundle)?)?;
    }
    let rootfs = bundle.join("rootfs");
    let overlay = (!origin.lower.is_empty())
        .then(|| {
            Overlay { lower: origin.lower, in_user_namespace: ids.maps.is_some() }.mount(&bundle, &rootfs)
        })
        .transpose()?;
    let found = OwnedFd::from(File::open(&rootfs).doing(|| format!("{rootfs:?}"))?);
    let differences = compare(found.as_fd(), expected.as_fd())?;
    drop((found, overlay));
    let same = differences.is_empty();
    if arguments.json {
        let told = json!({ "bundle": bundle, "image": name, "differences": differences });
        return Ok((format!("{told:#}\n"), same));
    }
    Ok((differences.into_iter().map(|line| line + "\n").collect(), same))
}

fn working_directory(bundle: &Path) -> Result<String> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).doing(|| format!("{path:?}"))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|error| Error::new(format!("{path:?}: {error}")))?;
    Ok(config["process"]["cwd"].as_str().unwrap_or("/").to_owned())
}

/// What the store has.
pub fn list(arguments: &Arguments, ids: &Ids) -> Result<String> {
    let store = open_store(arguments, ids)?;
    let (users, layers) = (store.users()?, store.layers()?);
    let bundles = |id: &String| users.iter().filter(|user| user.layers.contains(id)).count();
    if arguments.json {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "id": layer.id,
                    "diffID": layer.kept.diff_id,
                    "bytes": layer.kept.bytes,
                    "entries": layer.kept.entries,
                    "bundles": bundles(&layer.id),
                })
            })
            .collect();
        return Ok(format!("{:#}\n", json!({ "layers": layers, "bundles": users })));
    }
    let mut text = String::from("LAYER            BUNDLES      SIZE   ENTRIES\n");
    for layer in &layers {
        let size = HumanBytes(layer.kept.bytes).to_string();
        let id = layer.id.get(..16).unwrap_or(&layer.id);
        text += &format!("{id} {:>7} {size:>9} {:>9}\n", bundles(&layer.id), layer.kept.entries);
    }
    let total: u64 = layers.iter().map(|layer| layer.kept.bytes).sum();
    text += &format!("{} layers, {}\n", layers.len(), HumanBytes(total));
    for user in users {
        text += &format!(
            "{}: {} ({})\n",
            escape(&user.path.to_string_lossy()),
            escape(&user.image),
            user.digest.short()
        );
    }
    Ok(text)
}

/// Removes what isn't used.
pub fn collect(arguments: &Arguments, ids: &Ids, most: u64) -> Result<String> {
    let (count, bytes) = open_store(arguments, ids)?.collect(most)?;
    if arguments.json {
        return Ok(format!("{:#}\n", json!({ "layers": count, "bytes": bytes })));
    }
    Ok(format!("{count} layers removed, {}\n", HumanBytes(bytes)))
}
