//! Persistent memory on CXL: a type-3 device of QEMU, which Linux makes a region and namespaces of.

use super::super::folder;
use super::super::machine::Kernel;
use super::{MIB, Pmem};

/// A device's memory comes in multiples of this.
const DEVICE_BYTES: u64 = 512 * MIB;

/// Where a device keeps its labels.
const LABELS_BYTES: u64 = MIB;

/// Linux does not make regions where it takes itself for a guest, whose caches it could not empty.
const CPU: &str = "max,hypervisor=off";

/// A DAX file and device DAX on it.
pub fn check() -> String {
    let mut pmem = boot();
    pmem.guest.shell("cxl create-region -t pmem -d decoder0.0 -m mem0");
    let region = pmem.region("CXL", 0);
    let namespace = |mode: &str| {
        format!(
            "ndctl create-namespace -f -m {mode} -r region{region} -s 256M | sed -n 's/.*\"\\(blockdev\\|chardev\\)\":\"\\([^\"]*\\)\".*/\\2/p'"
        )
    };
    let block = format!("/dev/{}", pmem.guest.shell(&namespace("fsdax")));
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
    pmem.dax_file("cacheline", "memory_controller");
    pmem.assert_on_module();
    pmem.guest.shell(&format!("ndctl destroy-namespace -f all -r region{region}"));
    let device = format!("/dev/{}", pmem.guest.shell(&namespace("devdax")));
    pmem.assert_class(&device, "device DAX", "cacheline", "memory_controller");
    let info = pmem.info(&device);
    assert_eq!(info["regions"][0]["provider"], "CXL", "{info:#}");
    pmem.serve(&device, "", "--require-durable=cacheline");
    pmem.exercise(0);
    pmem.stop();
    pmem.assert_on_module();
    pmem.guest.power_off();
    "a file and device DAX, both with class cacheline and provider CXL".to_owned()
}

fn boot() -> Pmem {
    let image = Kernel::Recent.image();
    assert!(image.exists(), "there is no {}: run ci/lab/kernel recent", image.display());
    let folder = folder::on_files();
    let [memory, labels] = ["memory", "labels"].map(|name| folder.path().join(name));
    for (file, bytes) in [(&memory, DEVICE_BYTES), (&labels, LABELS_BYTES)] {
        std::fs::File::create(file).unwrap().set_len(bytes).unwrap();
    }
    let devices = format!(
        "-machine cxl=on -cpu {CPU} -m slots=4,maxmem=8G \
         -object memory-backend-file,id=memory0,share=on,mem-path={},size={DEVICE_BYTES} \
         -object memory-backend-file,id=labels0,share=on,mem-path={},size={LABELS_BYTES} \
         -device pxb-cxl,bus_nr=12,bus=pcie.0,id=bridge0 -device cxl-rp,port=0,bus=bridge0,id=port0,chassis=0,slot=2 \
         -device cxl-type3,bus=port0,persistent-memdev=memory0,lsa=labels0,id=device0 \
         -machine cxl-fmw.0.targets.0=bridge0,cxl-fmw.0.size=4G",
        memory.display(),
        labels.display()
    );
    Pmem::boot_on(Kernel::Recent, folder, vec![memory], &devices)
}
