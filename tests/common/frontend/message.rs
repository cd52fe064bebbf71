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
pub const SET_BACKEND_REQ_FD: u32 = 21;
/// Message type.
pub const GET_CONFIG: u32 = 24;
/// Message type.
pub const SET_CONFIG: u32 = 25;
/// Message type.
pub const POSTCOPY_ADVISE: u32 = 28;
/// Message type.
pub const POSTCOPY_LISTEN: u32 = 29;
/// Message type.
pub const POSTCOPY_END: u32 = 30;
/// Message type.
pub const GET_INFLIGHT_FD: u32 = 31;
/// Message type.
pub const ADD_MEM_REG: u32 = 37;
/// Message type.
pub const SET_DEVICE_STATE_FD: u32 = 42;
/// Message type.
pub const CHECK_DEVICE_STATE: u32 = 43;
