//! The messages of CRIU's RPC (criu.org/RPC), as far as they are used: the numbers are those of its
//! protocol.

/// What is asked for, and what an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)] // each is CRIU's request of that name
pub enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
}

/// What is done about the cgroups of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)] // each is CRIU's mode of that name
pub enum CgroupsMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
    Default = 6,
}

/// A request.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// Whether another request follows.
    #[prost(bool, optional, tag = "4")]
    pub keep_open: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
}

/// CRIU's command line, so to speak: criu(8) describes each.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Options {
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(message, optional, tag = "11")]
    pub page_server: Option<PageServer>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    pub auto_dedup: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Mounts from outside: at a checkpoint from a mount point to a name, at a restore from that name
    /// to a path on the host.
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<Pair>,
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    #[prost(message, repeated, tag = "25")]
    pub cg_root: Vec<CgroupRoot>,
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    #[prost(enumeration = "CgroupsMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    #[prost(message, repeated, tag = "39")]
    pub join_ns: Vec<Pair>,
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    #[prost(int32, optional, tag = "49")]
    pub status_fd: Option<i32>,
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
}

/// Where memory pages are sent.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct PageServer {
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
}

/// An external mount, or a namespace to join: its type and its file.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Pair {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub value: String,
}

/// Where a hierarchy's cgroups are put.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct CgroupRoot {
    #[prost(string, optional, tag = "1")]
    pub controllers: Option<String>,
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// A descriptor of CRIU's that takes the place of one in the image.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// What CRIU and the kernel can do.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Features {
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
}

/// An answer, or a notification, which is to be answered.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    pub features: Option<Features>,
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

/// What CRIU is about to do, or has done.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Notify {
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// CRIU's version.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Version {
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// Set for one between two releases.
    #[prost(string, optional, tag = "3")]
    pub git: Option<String>,
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_request_is_what_the_protocol_says() {
        let options = Options { images_dir_fd: 5, pid: Some(300), ..Options::default() };
        let request = Request { kind: Kind::Dump as i32, options: Some(options), ..Request::default() };
        // type = DUMP; opts of 5 bytes: images_dir_fd = 5, pid = 300.
        assert_eq!(request.encode_to_vec(), [0x08, 1, 0x12, 5, 0x08, 5, 0x10, 0xac, 0x02]);
    }

    #[test]
    fn options_after_the_fifteenth_have_their_numbers() {
        let mount = Pair { key: "/a".into(), value: "b".into() };
        let options =
            Options { ext_mnt: vec![mount], lsm_mount_context: Some("c".into()), ..Options::default() };
        let expected = [0x08, 0, 0xba, 1, 7, 0x0a, 2, b'/', b'a', 0x12, 1, b'b', 0xfa, 3, 1, b'c'];
        assert_eq!(options.encode_to_vec(), expected);
    }

    #[test]
    fn a_notification_is_understood_and_so_is_what_is_new() {
        // type = NOTIFY, success, notify { script = "x", pid = 7 }, and a field of a later version.
        let bytes = [0x08, 6, 0x10, 1, 0x2a, 5, 0x0a, 1, b'x', 0x10, 7, 0x60, 1];
        let response = Response::decode(&bytes[..]).expect("it parses");
        assert_eq!((response.kind(), response.success), (Kind::Notify, true));
        assert_eq!(response.notify, Some(Notify { script: Some("x".into()), pid: Some(7) }));
    }
}
