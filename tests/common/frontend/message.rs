//! Numbers of messages (vhost-user.rst, front-end message types), written down apart from those that the daemon is built with.

/// Message type.
pub const GET_FEATURES: u32 = 1;
/// Message type.
pub const SET_FEATURES: u32 = 2;
/// Message type.
pub const SET_OWNER: u32 = 3;
/// Message type.
pub const RESET_OWNER: u32 = 4;
/// Message type.
pub const SET_MEM_TABLE: u32 = 5;
/// Message type.
pub const SET_LOG_BASE: u32 = 6;
/// Message type.
pub const SET_LOG_FD: u32 = 7;
/// Message type.
pub const SET_VRING_NUM: u32 = 8;
/// Message type.
pub const SET_VRING_ADDR: u32 = 9;
/// Message type.
pub const SET_VRING_BASE: u32 = 10;
/// Message type.
pub const GET_VRING_BASE: u32 = 11;
/// Message type.
pub const SET_VRING_KICK: u32 = 12;
/// Message type.
pub const SET_VRING_CALL: u32 = 13;
/// Message type.
pub const SET_VRING_ERR: u32 = 14;
/// Message type.
pub const GET_PROTOCOL_FEATURES: u32 = 15;
/// Message type.
pub const SET_PROTOCOL_FEATURES: u32 = 16;
/// Message type.
pub const GET_QUEUE_NUM: u32 = 17;
/// Message type.
pub const SET_VRING_ENABLE: u32 = 18;
/// Message type.
pub const SEND_RARP: u32 = 19;
/// Message type.
pub const NET_SET_MTU: u32 = 20;
/// Message type.
pub const SET_BACKEND_REQ_FD: u32 = 21;
/// Message type.
pub const IOTLB_MSG: u32 = 22;
/// Message type.
pub const SET_VRING_ENDIAN: u32 = 23;
/// Message type.
pub const GET_CONFIG: u32 = 24;
/// Message type.
pub const SET_CONFIG: u32 = 25;
/// Message type.
pub const CREATE_CRYPTO_SESSION: u32 = 26;
/// Message type.
pub const CLOSE_CRYPTO_SESSION: u32 = 27;
/// Message type.
pub const POSTCOPY_ADVISE: u32 = 28;
/// Message type.
pub const POSTCOPY_LISTEN: u32 = 29;
/// Message type.
pub const POSTCOPY_END: u32 = 30;
/// Message type.
pub const GET_INFLIGHT_FD: u32 = 31;
/// Message type.
pub const SET_INFLIGHT_FD: u32 = 32;
/// Message type.
pub const GPU_SET_SOCKET: u32 = 33;
/// Message type.
pub const RESET_DEVICE: u32 = 34;
/// Message type.
pub const GET_MAX_MEM_SLOTS: u32 = 36;
/// Message type.
pub const ADD_MEM_REG: u32 = 37;
/// Message type.
pub const REM_MEM_REG: u32 = 38;
/// Message type.
pub const SET_STATUS: u32 = 39;
/// Message type.
pub const GET_STATUS: u32 = 40;
/// Message type.
pub const GET_SHARED_OBJECT: u32 = 41;
/// Message type.
pub const SET_DEVICE_STATE_FD: u32 = 42;
/// Message type.
pub const CHECK_DEVICE_STATE: u32 = 43;
/// Message type.
pub const GET_SHMEM_CONFIG: u32 = 44;
