//! `spec`: an example config.json, the same as runc's.

use crate::cgroup::Layout;
use crate::config::{FILE, SPEC_VERSION};
use crate::error::{Context, Error, Result};
use crate::sys::Call;
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The command.
pub fn run(bundle: &Path, rootless: bool) -> Result<()> {
    let ids = rootless.then(|| (geteuid().as_raw(), getegid().as_raw()));
    let unified = Layout::probe().is_ok_and(|layout| layout.is_unified());
    let path = bundle.join(FILE);
    let mut file =
        File::create_new(&path).call(|| format!("open({path:?}, O_CREAT|O_EXCL)")).map_err(|failed| {
            match failed.errno {
                Errno::EEXIST => Error::new(format!("File {FILE} exists. Remove it first")),
                _ => Error::from(failed).prefix("cannot write the example"),
            }
        })?;
    let text = example(unified, ids);
    file.write_all(text.as_bytes())
        .call(|| format!("write({path:?})"))
        .doing(|| "cannot write the example".into())
}

/// The text, in the specification's order and with runc's host name: scripts that edit what
/// `runc spec` writes find here what they look for. `ids` are the user's, for one who isn't root.
fn example(unified: bool, ids: Option<(u32, u32)>) -> String {
    let namespace = |kind: &&str| format!("\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}");
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount"];
    if unified {
        namespaces.push("cgroup");
    }
    let mut sys = SYS;
    let (mut group, mut maps, mut resources) = (",\n\t\t\t\t\"gid=5\"", String::new(), RESOURCES);
    if let Some((uid, gid)) = ids {
        namespaces.retain(|kind| *kind != "network");
        namespaces.push("user");
        (sys, group, resources) = (ROOTLESS_SYS, "", "");
        let map = |name: &str, id: u32| {
            format!(
                "\t\t\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
            )
        };
        maps = map("uidMappings", uid) + &map("gidMappings", gid);
    }
    let namespaces: Vec<_> = namespaces.iter().map(namespace).collect();
    EXAMPLE
        .replace("@VERSION@", SPEC_VERSION)
        .replace("@SYS@", sys)
        .replace("@GID@", group)
        .replace("@MAPS@", &maps)
        .replace("@RESOURCES@", resources)
        .replace("@NAMESPACES@", &namespaces.join(",\n"))
}

const SYS: &str = "\"type\": \"sysfs\",
\t\t\t\"source\": \"sysfs\",
\t\t\t\"options\": [
\t\t\t\t\"nosuid\",
\t\t\t\t\"noexec\",
\t\t\t\t\"nodev\",
\t\t\t\t\"ro\"
\t\t\t]";

/// An ordinary user may not mount a sysfs without a network namespace of his own.
const ROOTLESS_SYS: &str = "\"type\": \"none\",
\t\t\t\"source\": \"/sys\",
\t\t\t\"options\": [
\t\t\t\t\"rbind\",
\t\t\t\t\"nosuid\",
\t\t\t\t\"noexec\",
\t\t\t\t\"nodev\",
\t\t\t\t\"ro\"
\t\t\t]";

const RESOURCES: &str = "\t\t\"resources\": {
\t\t\t\"devices\": [
\t\t\t\t{
\t\t\t\t\t\"allow\": false,
\t\t\t\t\t\"access\": \"rwm\"
\t\t\t\t}
\t\t\t]
\t\t},
";

const EXAMPLE: &str = include_str!("spec.json.in");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{check, parse};
    use oci_spec::runtime::Spec;

    #[test]
    fn the_examples_are_valid() {
        for (unified, ids) in [(false, None), (true, None), (true, Some((1000, 1001)))] {
            let text = example(unified, ids);
            let spec: Spec = serde_json::from_str(&text).expect("it parses as it is");
            assert_eq!(check(&spec), [], "{text}");
            let value: serde_json::Value = parse(text.as_bytes()).expect("it parses");
            assert_eq!(value["process"]["terminal"], true);
            assert_eq!(value["linux"]["uidMappings"][0]["hostID"].as_u64(), ids.map(|(uid, _)| uid.into()));
            assert_eq!(text.contains("gid=5"), ids.is_none());
        }
    }
}
