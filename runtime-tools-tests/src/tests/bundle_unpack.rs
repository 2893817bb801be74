//! What layers mean together: whiteouts, what replaces what, links from layer to layer. Each is looked
//! at unpacked directly, copied from the store, and as an overlay.

use super::bundle_world::{Tree, Way, look, look_at_image, needs_user_attributes};
use crate::case::Case;
use crate::harness::Verdict;
use crate::image::tar::{Entry, MTIME, archive};
use crate::image::{Image, Layer, Packing};
use crate::{ensure_eq, tests};

tests![
    "image-spec layer.md, Whiteouts" => whiteouts,
    "image-spec layer.md, Whiteouts: only apply to lower layers" => whiteouts_spare_their_own_layer,
    "image-spec layer.md, Opaque Whiteout" => opaque_whiteouts,
    "image-spec layer.md, Opaque Whiteout: of the root" => opaque_root,
    "image-spec layer.md, Whiteouts: a parent that is a link" => whiteout_through_a_link,
    "image-spec layer.md, Whiteouts: what isn't there" => whiteouts_of_nothing,
    "image-spec layer.md, Whiteouts: what came back" => whiteouts_over_many_layers,
    "image-spec layer.md, Applying Changesets: existing files" => types_replace_each_other,
    "image-spec layer.md, Applying Changesets: a link isn't written through" => links_are_replaced,
    "merged /usr: a lower layer's link as a parent" => merged_usr,
    "merged /usr: an entry for the directory replaces the link" => directory_replaces_link,
    "image-spec layer.md, Applying Changesets: a directory without an entry" => parents_without_entries,
    "image-spec layer.md, Applying Changesets: a directory's entry changes it" => directories_are_merged,
    "image-spec layer.md, Hardlinks" => hard_links,
    "image-spec layer.md, Hardlinks: in any order" => hard_links_before_their_targets,
    "image-spec layer.md, Hardlinks: to a lower layer" => hard_links_across_layers,
    "image-spec layer.md, Hardlinks: one name is replaced" => hard_link_is_cut,
    "image-spec layer.md, Hardlinks: renamed" => hard_link_then_whiteout,
    "image-spec layer.md: the last of two entries" => duplicates,
    "image-spec layer.md: empty layers" => empty_layers,
    "image-spec manifest.md, layers: in order" => ten_layers,
    "image-spec manifest.md, layers: one layer twice" => one_layer_twice,
];

fn dir(name: &str) -> Entry {
    Entry::directory(name)
}

fn file(name: &str) -> Entry {
    Entry::file(name, name)
}

fn whiteouts(case: &Case) -> Verdict {
    let lower = [dir("d/"), file("d/gone"), file("d/stays"), dir("tree/"), file("tree/x"), file("top")];
    let more = [Entry::symlink("link", "d/stays"), Entry::new(b'6', "fifo"), dir("kept/"), file("kept/x")];
    let upper =
        ["d/.wh.gone", ".wh.tree", ".wh.top", ".wh.link", ".wh.fifo"].map(|name| Entry::file(name, ""));
    look(case, &[&[&lower[..], &more].concat(), &upper], |tree| {
        tree.directory("", &["d", "kept"])?;
        tree.directory("d", &["stays"])?;
        tree.file("d/stays", "d/stays")?;
        tree.directory("kept", &["x"])
    })
}

fn whiteouts_spare_their_own_layer(case: &Case) -> Verdict {
    let lower = [
        dir("d/"),
        file("d/old"),
        dir("e/"),
        file("e/old"),
        Entry::file("f", "old"),
        Entry::file("g", "old"),
    ];
    let upper = [
        dir("d/"),
        file("d/new"),
        Entry::file(".wh.d", ""),
        Entry::file(".wh.e", ""),
        dir("e/"),
        file("e/new"),
        Entry::file("f", "new"),
        Entry::file(".wh.f", ""),
        Entry::file(".wh.g", ""),
        Entry::file("g", "new"),
    ];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("", &["d", "e", "f", "g"])?;
        tree.file("f", "new")?;
        tree.file("g", "new")?;
        tree.directory("e", &["new"])?;
        tree.directory("d", &["new"])
    })
}

fn opaque_whiteouts(case: &Case) -> Verdict {
    let mut lower = Vec::new();
    for name in ["first", "last", "alone"] {
        lower.extend([dir(name).mode(0o750).owner(3, 4), dir(&format!("{name}/sub")).mode(0o700)]);
        lower.extend([file(&format!("{name}/sub/old")), file(&format!("{name}/old"))]);
        lower.push(Entry::file(format!("{name}/both"), "old"));
    }
    let mut upper = vec![Entry::file("first/.wh..wh..opq", "")];
    for name in ["first", "last"] {
        upper.extend([file(&format!("{name}/new")), Entry::file(format!("{name}/both"), "new")]);
        upper.push(file(&format!("{name}/sub/new")));
    }
    upper.extend([Entry::file("last/.wh..wh..opq", ""), Entry::file("alone/.wh..wh..opq", "")]);
    look(case, &[&lower, &upper], |tree| {
        for name in ["first", "last"] {
            tree.directory(name, &["both", "new", "sub"])?;
            tree.directory(&format!("{name}/sub"), &["new"])?;
            tree.file(format!("{name}/both"), "new")?;
            // The directory itself stays what it was.
            tree.mode(name, 0o750, 3, 4)?;
        }
        tree.mode("alone", 0o750, 3, 4)?;
        tree.directory("alone", &[])
    })
}

fn opaque_root(case: &Case) -> Verdict {
    let lower = [dir("d/"), file("d/old"), file("old")];
    let upper = [file("new"), Entry::file(".wh..wh..opq", ""), file("d/new")];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("", &["d", "new"])?;
        tree.directory("d", &["new"])
    })
}

fn whiteout_through_a_link(case: &Case) -> Verdict {
    let lower = [
        dir("real/"),
        file("real/gone"),
        file("real/stays"),
        Entry::symlink("link", "real"),
        dir("other/"),
        file("other/gone"),
        Entry::symlink("absolute", "/other"),
    ];
    let upper = [Entry::file("link/.wh.gone", ""), Entry::file("absolute/.wh..wh..opq", "")];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("real", &["stays"])?;
        tree.symlink("link", "real")?;
        tree.symlink("absolute", "/other")?;
        tree.directory("other", &[])
    })
}

fn whiteouts_of_nothing(case: &Case) -> Verdict {
    let lower = [dir("d/"), file("d/x"), file("plain")];
    let upper = [Entry::file("d/.wh.nothing", ""), Entry::file(".wh.nothing", ""), file("new")];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("", &["d", "new", "plain"])?;
        tree.directory("d", &["x"])
    })
}

fn whiteouts_over_many_layers(case: &Case) -> Verdict {
    let layers = [
        vec![dir("d/"), file("d/one"), file("x")],
        vec![Entry::file(".wh.d", ""), Entry::file(".wh.x", "")],
        vec![dir("d/"), file("d/three"), Entry::file("x", "three")],
        vec![Entry::file("d/.wh.three", ""), file("d/four")],
    ];
    look(case, &layers.each_ref().map(Vec::as_slice), |tree| {
        tree.directory("d", &["four"])?;
        tree.file("x", "three")
    })
}

fn types_replace_each_other(case: &Case) -> Verdict {
    type Kind = (&'static str, fn(&str) -> Vec<Entry>);
    let kinds: [Kind; 5] = [
        ("file", |name| vec![Entry::file(name, "content").mode(0o600)]),
        ("directory", |name| vec![Entry::directory(name), Entry::file(format!("{name}/below"), "")]),
        ("symlink", |name| vec![Entry::symlink(name, "elsewhere")]),
        ("fifo", |name| vec![Entry::new(b'6', name)]),
        ("device", |name| vec![Entry::device(b'3', name, 1, 3)]),
    ];
    let (mut lower, mut upper) = (vec![dir("elsewhere/"), file("elsewhere/stays")], Vec::new());
    for (from, before) in kinds {
        for (to, after) in kinds {
            lower.extend(before(&format!("{from}-{to}")));
            upper.extend(after(&format!("{from}-{to}")));
        }
    }
    look(case, &[&lower, &upper], |tree| {
        for (from, _) in kinds {
            let path = |to: &str| format!("{from}-{to}");
            tree.file(path("file"), "content")?;
            tree.mode(path("file"), 0o600, 0, 0)?;
            tree.directory(&path("directory"), &["below"])?;
            tree.symlink(path("symlink"), "elsewhere")?;
            for (to, kind) in [("fifo", libc::S_IFIFO), ("device", libc::S_IFCHR)] {
                let mode = std::os::unix::fs::MetadataExt::mode(&tree.metadata(path(to))?);
                ensure_eq!(mode & libc::S_IFMT, kind, "type of {:?}", path(to));
            }
        }
        tree.directory("elsewhere", &["stays"])
    })
}

fn links_are_replaced(case: &Case) -> Verdict {
    let lower = [
        Entry::file("target", "old").mode(0o600),
        Entry::symlink("link", "target"),
        Entry::symlink("dangling", "none"),
    ];
    let upper = [Entry::file("link", "new").mode(0o644), Entry::file("dangling", "new")];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("", &["dangling", "link", "target"])?;
        tree.file("target", "old")?;
        tree.mode("target", 0o600, 0, 0)?;
        tree.file("link", "new")?;
        tree.file("dangling", "new")
    })
}

fn merged_usr(case: &Case) -> Verdict {
    let lower = [
        dir("usr/"),
        dir("usr/lib/").mode(0o711).mtime(7),
        file("usr/lib/old"),
        Entry::symlink("lib", "usr/lib").mtime(8),
        Entry::symlink("lib64", "/usr/lib"),
        dir("a/"),
        Entry::symlink("a/up", "../usr"),
    ];
    let upper =
        [file("lib/x"), file("lib64/y"), file("a/up/lib/z"), dir("lib/sub/"), Entry::file("lib/old", "new")];
    look(case, &[&lower, &upper], |tree| {
        tree.symlink("lib", "usr/lib")?;
        tree.symlink("lib64", "/usr/lib")?;
        tree.symlink("a/up", "../usr")?;
        tree.directory("usr/lib", &["old", "sub", "x", "y", "z"])?;
        tree.file("usr/lib/x", "lib/x")?;
        tree.file("usr/lib/old", "new")?;
        tree.mode("usr/lib", 0o711, 0, 0)?;
        tree.mtime("usr/lib", 7, 0)
    })
}

fn directory_replaces_link(case: &Case) -> Verdict {
    let lower = [dir("usr/"), dir("usr/lib/"), file("usr/lib/old"), Entry::symlink("lib", "usr/lib")];
    let upper = [dir("lib/").mode(0o700), file("lib/x")];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("lib", &["x"])?;
        tree.mode("lib", 0o700, 0, 0)?;
        tree.directory("usr/lib", &["old"])
    })
}

fn parents_without_entries(case: &Case) -> Verdict {
    needs_user_attributes(case)?;
    let lower = [
        dir("d/").mode(0o2710).owner(11, 12).mtime(13).xattr("user.of", "d"),
        dir("d/e/").mode(0o700).mtime(14),
    ];
    let upper = [file("d/e/x"), file("new/deep/x")];
    look(case, &[&lower, &upper, &[Entry::file("d/.wh.e", ""), file("d/y")]], |tree| {
        tree.directory("d", &["y"])?;
        tree.mode("d", 0o2710, 11, 12)?;
        tree.mtime("d", 13, 0)?;
        ensure_eq!(tree.xattr("d", "user.of")?.as_deref(), Some(&b"d"[..]), "the directory's attribute");
        tree.mode("new", 0o755, 0, 0)?;
        tree.mode("new/deep", 0o755, 0, 0)
    })
}

fn directories_are_merged(case: &Case) -> Verdict {
    needs_user_attributes(case)?;
    let lower =
        [dir("d/").mode(0o700).owner(1, 1).xattr("user.old", "1"), file("d/old"), dir("./").mode(0o755)];
    let upper = [
        dir("d").mode(0o1777).owner(2, 3).mtime(99),
        file("d/new"),
        dir("./").mode(0o711).owner(5, 6).mtime(98),
    ];
    look(case, &[&lower, &upper], |tree| {
        tree.directory("d", &["new", "old"])?;
        tree.mode("d", 0o1777, 2, 3)?;
        tree.mtime("d", 99, 0)?;
        ensure_eq!(tree.xattr("d", "user.old")?, None, "an attribute of the lower layer's directory");
        tree.mode("", 0o711, 5, 6)?;
        tree.mtime("", 98, 0)
    })
}

fn hard_links(case: &Case) -> Verdict {
    let layer = [
        dir("d/"),
        file("a").mode(0o600).owner(5, 6).mtime(7),
        Entry::hard_link("d/b", "a"),
        // To a link by another spelling, and from a directory that comes later.
        Entry::hard_link("c", "./d/b"),
        Entry::hard_link("later/f", "a"),
        dir("later").mtime(8),
        Entry::symlink("s", "a"),
        Entry::hard_link("t", "s"),
        Entry::new(b'6', "fifo"),
        Entry::hard_link("fifo2", "fifo"),
    ];
    look(case, &[&layer], |tree| {
        tree.linked(&["a", "d/b", "c", "later/f"])?;
        tree.file("c", "a")?;
        tree.mode("c", 0o600, 5, 6)?;
        tree.mtime("c", 7, 0)?;
        tree.mtime("later", 8, 0)?;
        tree.symlink("t", "a")?;
        tree.linked(&["s", "t"])?;
        tree.linked(&["fifo", "fifo2"])
    })
}

/// A link needn't come after what it is a link to, nor that one; where it is replaced, its entry doesn't
/// count.
fn hard_links_before_their_targets(case: &Case) -> Verdict {
    let link = Entry::hard_link;
    let lower = [
        link("a", "b"),
        link("b", "d/z"),
        link("d/c", "b"),
        dir("d"),
        file("d/z"),
        Entry::file("old", "old"),
    ];
    let upper = [
        link("e", "f"),
        link("f", "g"),
        file("g"),
        link("h", "old"),
        Entry::file("h", "new"),
        link("i", "h"),
    ];
    look(case, &[&lower, &upper], |tree| {
        tree.linked(&["a", "b", "d/c", "d/z"])?;
        tree.file("a", "d/z")?;
        tree.linked(&["e", "f", "g"])?;
        tree.linked(&["h", "i"])?;
        tree.file("i", "new")?;
        tree.file("old", "old")
    })
}

/// Whether two names in different layers of an overlay are one file is the kernel's matter.
fn same_file(tree: &Tree, paths: &[&str]) -> Verdict {
    if tree.way == Way::Overlaid { Ok(()) } else { tree.linked(paths) }
}

fn hard_links_across_layers(case: &Case) -> Verdict {
    needs_user_attributes(case)?;
    let lower =
        [dir("d/"), Entry::file("d/a", "content").mode(0o4711).owner(5, 6).mtime(7).xattr("user.x", "y")];
    look(case, &[&lower, &[Entry::hard_link("b", "d/a")], &[Entry::hard_link("c", "b")]], |tree| {
        for path in ["d/a", "b", "c"] {
            tree.file(path, "content")?;
            tree.mode(path, 0o4711, 5, 6)?;
            tree.mtime(path, 7, 0)?;
            ensure_eq!(tree.xattr(path, "user.x")?.as_deref(), Some(&b"y"[..]), "attribute of {path}");
        }
        same_file(tree, &["d/a", "b", "c"])
    })
}

fn hard_link_is_cut(case: &Case) -> Verdict {
    let lower = [file("a"), Entry::hard_link("b", "a"), file("c"), Entry::hard_link("d", "c")];
    let upper = [Entry::file("a", "new").mode(0o600).owner(9, 9).mtime(9), Entry::hard_link("c", "a")];
    look(case, &[&lower, &upper], |tree| {
        tree.file("a", "new")?;
        tree.file("b", "a")?;
        tree.mode("b", 0o644, 0, 0)?;
        tree.mtime("b", MTIME, 0)?;
        tree.file("c", "new")?;
        tree.file("d", "c")?;
        tree.linked(&["a", "c"])
    })
}

fn hard_link_then_whiteout(case: &Case) -> Verdict {
    look(case, &[&[file("a")], &[Entry::hard_link("b", "a"), Entry::file(".wh.a", "")]], |tree| {
        tree.directory("", &["b"])?;
        tree.file("b", "a")
    })
}

fn duplicates(case: &Case) -> Verdict {
    let layer = [
        Entry::file("f", "first, which is longer").mode(0o600),
        Entry::file("./f", "last").mode(0o640),
        dir("d/").mode(0o700),
        file("d/x"),
        dir("d").mode(0o711).mtime(5),
        Entry::file("g", "file"),
        Entry::symlink("g", "f"),
        Entry::file("h", "one"),
        Entry::hard_link("i", "h"),
        Entry::file("h", "two"),
    ];
    look(case, &[&layer], |tree| {
        tree.file("f", "last")?;
        tree.mode("f", 0o640, 0, 0)?;
        tree.directory("d", &["x"])?;
        tree.mode("d", 0o711, 0, 0)?;
        tree.mtime("d", 5, 0)?;
        tree.symlink("g", "f")?;
        tree.file("i", "one")?;
        tree.file("h", "two")
    })
}

fn empty_layers(case: &Case) -> Verdict {
    let layers = [
        Layer::new(&archive(&[file("a")]), Packing::Gzip),
        Layer::new(&archive(&[]), Packing::Gzip),
        Layer::new(&[0; 10240], Packing::Plain),
        Layer::new(&[], Packing::Gzip),
        Layer::new(&[], Packing::Plain),
        Layer::new(&archive(&[]), Packing::Zstd),
        Layer::new(&archive(&[file("b")]), Packing::Zstd),
    ];
    look_at_image(case, &Image::new(&layers), |tree| tree.directory("", &["a", "b"]))?;
    look(case, &[], |tree| tree.directory("", &[]))
}

fn ten_layers(case: &Case) -> Verdict {
    let layer = |number: usize| {
        let own = Entry::file(format!("d/{number}"), "x".repeat(number * 5000));
        let hidden = Entry::file(format!("d/.wh.{}", number.wrapping_sub(3)), "");
        vec![dir("d/").mtime(number as i64), Entry::file("all", number.to_string()), own, hidden]
    };
    let layers: Vec<_> = (0..10).map(layer).collect();
    look(case, &layers.iter().map(Vec::as_slice).collect::<Vec<_>>(), |tree| {
        tree.directory("d", &["7", "8", "9"])?;
        tree.file("d/9", "x".repeat(45000))?;
        tree.mtime("d", 9, 0)?;
        tree.file("all", "9")
    })
}

fn one_layer_twice(case: &Case) -> Verdict {
    let one = Layer::of(&[dir("d/"), Entry::file("f", "one")]);
    let two = Layer::of(&[Entry::file("f", "two"), file("g")]);
    let hide = Layer::of(&[Entry::file(".wh.g", "")]);
    look_at_image(case, &Image::new(&[one.clone(), two.clone(), hide, one, two]), |tree| {
        tree.directory("", &["d", "f", "g"])?;
        tree.file("f", "two")
    })
}
