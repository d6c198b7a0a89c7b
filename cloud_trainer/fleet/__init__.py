"""Many devices on one model: how their trunks become one."""
