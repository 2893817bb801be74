//! Compiles the one program of the embedded image: static, so that it needs nothing around it.

use std::env::var;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=embedded/hello.rs");
    let rustc = var("RUSTC").expect("cargo sets it");
    let output = format!("{}/hello", var("OUT_DIR").expect("cargo sets it"));
    let target = var("TARGET").expect("cargo sets it");
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "--crate-type=bin", "-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols"]);
    command.args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "--target", &target]);
    if let Ok(linker) = var("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    let status = command.args(["-o", &output, "embedded/hello.rs"]).status().expect("rustc can be run");
    assert!(status.success(), "embedded/hello.rs can't be compiled");
}
