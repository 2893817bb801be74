//! The program of the embedded image: it says what it sees, from inside a container.

use std::fs::read_to_string;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.is_empty() {
        println!("{}", arguments.join(" "));
        return;
    }
    let line = |path: &str| read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let status = line("/proc/self/status");
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or("?").split_whitespace().next().unwrap_or("?").to_owned()
    };
    println!("This is a container.");
    println!("  process id      {}", std::process::id());
    println!("  user, group     {}, {}", field("Uid"), field("Gid"));
    println!("  host name       {}", line("/proc/sys/kernel/hostname"));
    println!("  capabilities    {}", field("CapEff"));
    println!("  seccomp filters {}", field("Seccomp_filters"));
    println!("  mounts          {}", line("/proc/self/mountinfo").lines().count());
    let interfaces: Vec<String> = read_to_string("/proc/net/dev")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    println!("  network         {}", interfaces.join(", "));
    let mut names: Vec<String> = std::fs::read_dir("/")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    println!("  /               {}", names.join(" "));
}
