#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_pmem_fuzz::targets::named("control")(data));
