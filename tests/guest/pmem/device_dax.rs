//! Device DAX: a disk while its driver is `device_dax`, and only then.

use super::{NOT_REGULAR, Pmem};
use crate::guest::Reply;

/// A namespace of the second module, and what its node is called in sysfs.
fn namespace(pmem: &mut Pmem) -> String {
    let region = pmem.region("ACPI.NFIT", 1);
    pmem.guest.shell(&format!("ndctl create-namespace -f -e namespace{region}.0 -m devdax"));
    format!("dax{region}.0")
}

pub(super) fn durable(pmem: &mut Pmem) -> String {
    let device = format!("/dev/{}", namespace(pmem));
    pmem.assert_class(&device, "device DAX", "cacheline", "memory_controller");
    pmem.assert_refused(&device, "byte");
    pmem.serve(&device, "", "--require-durable=cacheline");
    let info = pmem.info(&device);
    assert_eq!(info["huge_bytes"], info["size_bytes"], "{info:#}");
    let grown = pmem.exercise(0);
    assert!(grown < 4096, "the page cache has grown by {grown} KiB");
    pmem.stop();
    pmem.assert_on_module();
    format!("class cacheline, flushed, verified, {grown} KiB cached")
}

/// The node stays where it is, without a driver or with that of the system's memory.
pub(super) fn of_another_driver(pmem: &mut Pmem) -> String {
    const DRIVERS: &str = "/sys/bus/dax/drivers";
    let name = namespace(pmem);
    let device = format!("/dev/{name}");
    pmem.serve(&device, "", "");
    pmem.client("write:0:1048576:7 verify:0:1048576:7");
    pmem.guest.shell(&format!("echo {name} >{DRIVERS}/device_dax/unbind"));
    pmem.assert_told(&[("verify:0:4096:7", "errno 5"), ("write:0:4096:7", "errno 5")]);
    let log = pmem.guest.shell("cat /tmp/log");
    assert!(log.contains("is gone") && !log.contains("truncated"), "{log}");
    pmem.stop();
    pmem.assert_not_servable(&device, "it has no driver");
    pmem.guest.shell(&format!("echo {name} >{DRIVERS}/kmem/new_id || echo {name} >{DRIVERS}/kmem/bind"));
    pmem.assert_not_servable(&device, "its driver is kmem")
}

impl Pmem {
    /// Panics unless a node is refused for the sake of its driver, whether one looks or serves; what is said.
    fn assert_not_servable(&mut self, device: &str, why: &str) -> String {
        let name = device.trim_start_matches("/dev/");
        let remedy = format!("daxctl reconfigure-device --mode=devdax {name}");
        let Reply { status, text } = self.guest.run(&format!("/lab/pmem.sh serve {device} ''"));
        assert_eq!(status, NOT_REGULAR, "{text}");
        assert!(text.contains(why) && text.contains(&remedy), "{text}");
        let info = self.info(device);
        let refusal = info["refusal"].as_str().unwrap_or_default().to_owned();
        assert!(refusal.contains(why) && refusal.contains(&remedy), "{info:#}");
        assert_eq!(info["durability"], "volatile", "{info:#}");
        refusal
    }
}
