//! `linux.netDevices`: network devices of the host that become the container's (config-linux.md,
//! "Network Devices").

use crate::error::{Context, Error, Pointer, Result};
use crate::sys::{Call, file};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use oci_spec::runtime::Linux;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    at: Pointer,
    /// Its name on the host.
    host: String,
    /// Its name in the container, if that is another one; `%d` in it is a number that is free.
    container: Option<String>,
}

/// Those of the configuration, in the order of their names.
pub fn plan(linux: &Linux) -> Vec<NetDevice> {
    let mut devices: Vec<_> = linux.net_devices().iter().flatten().collect();
    devices.sort_by_key(|(host, _)| *host);
    let at = Pointer::to("/linux/netDevices");
    let device = |(host, device): (&String, &oci_spec::runtime::LinuxNetDevice)| NetDevice {
        at: at.key(host),
        host: host.clone(),
        container: device.name().clone().filter(|name| !name.is_empty()),
    };
    devices.into_iter().map(device).collect()
}

impl fmt::Display for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: move network device {} to the container", self.at, self.host)?;
        match &self.container {
            Some(name) => write!(f, " as {name}, with its addresses, and set it up"),
            None => write!(f, ", with its addresses, and set it up"),
        }
    }
}

/// Moves the devices to `namespace`. What was moved before a failure stays there: when the namespace ends
/// the kernel gives a physical device back, and a virtual one belonged to the container alone; of a
/// namespace that goes on they are its owner's.
pub fn move_all(devices: &[NetDevice], namespace: BorrowedFd<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let host = Route::open()?;
    let container = Route::open_in(namespace)?;
    devices.iter().try_for_each(|device| {
        device
            .move_to(namespace, &host, &container)
            .doing(|| format!("cannot move network device {:?}", device.host))
            .map_err(|error| error.at(device.at.clone()))
    })
}

impl NetDevice {
    fn move_to(&self, namespace: BorrowedFd<'_>, host: &Route, container: &Route) -> Result<()> {
        let index = if_nametoindex(self.host.as_str())
            .call(|| format!("if_nametoindex({:?})", self.host))
            .map_err(|failed| Error::from(failed).hint("the host has no such device"))?;
        // Moving a device takes its addresses away.
        let addresses = host.kept_addresses(index)?;
        let before = container.links()?;
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        if let Some(name) = &self.container {
            link.attributes.push(LinkAttribute::IfName(name.clone()));
        }
        host.change(RouteNetlinkMessage::SetLink(link), 0).map_err(|error| match error.errno() {
            Some(Errno::EEXIST) => error.hint("the container has a device of that name already"),
            _ => error,
        })?;
        // Its number may be another one now. Where the kernel chose its name, it is the one that is new.
        let name = self.container.as_ref().unwrap_or(&self.host);
        let mut links = container.links()?.into_iter();
        let moved = match name.contains('%') {
            true => links.find(|link| !before.contains(link)),
            false => links.find(|(_, other)| other == name),
        };
        let (index, _) =
            moved.ok_or_else(|| Error::new("it is not in the container's namespace after all"))?;
        for mut address in addresses {
            address.header.index = index;
            container.change(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL)?;
        }
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        container.change(RouteNetlinkMessage::SetLink(link), 0)
    }
}

/// A connection to the kernel's network configuration (rtnetlink(7)) of one namespace.
struct Route(OwnedFd);

impl Route {
    /// Of this process's.
    fn open() -> Result<Self> {
        let kind =
            (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        Ok(Route(socket(kind.0, kind.1, kind.2, kind.3).call(|| "socket(AF_NETLINK, NETLINK_ROUTE)".into())?))
    }

    /// Of another: a socket stays in the namespace in which it was made.
    fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        let own = file::open(AT_FDCWD, Path::new("/proc/self/ns/net"), OFlag::O_RDONLY)?;
        let enter =
            |fd: BorrowedFd<'_>| setns(fd, CloneFlags::CLONE_NEWNET).call(|| "setns(CLONE_NEWNET)".into());
        enter(namespace)?;
        let opened = Self::open();
        enter(own.as_fd())?;
        opened
    }

    /// All devices: (number, name).
    fn links(&self) -> Result<Vec<(u32, String)>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let index = |message| match message {
            RouteNetlinkMessage::NewLink(link) => {
                let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                });
                Some((link.header.index, name.unwrap_or_default()))
            }
            _ => None,
        };
        Ok(answers.into_iter().filter_map(index).collect())
    }

    /// The addresses of a device that it keeps: permanent ones that are valid everywhere.
    fn kept_addresses(&self, index: u32) -> Result<Vec<AddressMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let address = |message| match message {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == index => kept(address),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).call(|| "send(NETLINK_ROUTE)".into())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .call(|| "recv(NETLINK_ROUTE)".into())?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| Error::new(format!("netlink: {error}")))?;
                let whole = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[whole..];
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(code) => {
                            return Err::<Vec<_>, _>(Errno::from_raw(-code.get()))
                                .call(|| "netlink".into())
                                .map_err(Error::from);
                        }
                    },
                    _ => {}
                }
            }
        }
    }
}

/// The message that sets an address again, if it is one that is kept.
fn kept(address: AddressMessage) -> Option<AddressMessage> {
    let mut flags = AddressFlags::from_bits_retain(address.header.flags.bits().into());
    for attribute in &address.attributes {
        if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    if !flags.contains(AddressFlags::Permanent) || address.header.scope != AddressScope::Universe {
        return None;
    }
    let mut again = AddressMessage::default();
    again.header = address.header;
    again.attributes = address
        .attributes
        .into_iter()
        .filter(|attribute| {
            matches!(
                attribute,
                AddressAttribute::Address(_)
                    | AddressAttribute::Local(_)
                    | AddressAttribute::Broadcast(_)
                    | AddressAttribute::Anycast(_)
                    | AddressAttribute::Flags(_)
                    | AddressAttribute::RoutePriority(_)
            )
        })
        .collect();
    Some(again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::AddressHeaderFlags;

    #[test]
    fn permanent_addresses_of_global_scope_are_kept() {
        let address = |flags, scope, more: Option<AddressFlags>| {
            let mut address = AddressMessage::default();
            address.header.flags = flags;
            address.header.scope = scope;
            address.attributes.push(AddressAttribute::Label("eth0".into()));
            address.attributes.push(AddressAttribute::Local([192, 0, 2, 1].into()));
            address.attributes.extend(more.map(AddressAttribute::Flags));
            kept(address).map(|kept| kept.attributes.len())
        };
        let permanent = AddressHeaderFlags::Permanent;
        assert_eq!(address(permanent, AddressScope::Universe, None), Some(1));
        assert_eq!(address(permanent, AddressScope::Link, None), None);
        assert_eq!(address(permanent, AddressScope::Host, None), None);
        assert_eq!(address(AddressHeaderFlags::empty(), AddressScope::Universe, None), None);
        let long = AddressFlags::Permanent | AddressFlags::Noprefixroute;
        assert_eq!(address(AddressHeaderFlags::empty(), AddressScope::Universe, Some(long)), Some(2));
    }
}
