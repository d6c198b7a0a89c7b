"""The device's side of a fleet whose trunks become one."""
