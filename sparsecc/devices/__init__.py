"""Where things are built and measured: this machine, a board over SSH, a phone over adb."""

from __future__ import annotations

from sparsecc.devices.device import Completed, Device, DeviceAddress, parse_device
from sparsecc.errors import InputError

__all__ = ["Completed", "Device", "DeviceAddress", "open_device", "parse_device"]


def open_device(spec: str) -> Device:
    """Connect to `local`, `ssh://user@host:port` or `adb:SERIAL`. Use it in a `with`; it cleans up.

    InputError when the spec is wrong, UnavailableError when the device does not answer.
    """
    address = parse_device(spec)
    if address.kind == "local":
        from sparsecc.devices.local import LocalDevice

        return LocalDevice()
    if address.kind == "ssh":
        from sparsecc.devices.ssh import SshDevice

        return SshDevice(address)
    if address.kind == "adb":
        from sparsecc.devices.adb import AdbDevice

        return AdbDevice(address)
    raise InputError(f"unknown kind of device '{address.kind}': use local, ssh://user@host or adb:SERIAL")
