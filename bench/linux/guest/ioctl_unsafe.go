//go:build linux

package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockRange gives a block device a request about bytes, such as BLKDISCARD
// (linux/fs.h): first byte and length.
func blockRange(f *os.File, req uintptr, at, n uint64) error {
	span := [2]uint64{at, n}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(&span))); e != 0 {
		return e
	}
	return nil
}

// setChannels is ETHTOOL_SCHANNELS (linux/ethtool.h, struct ethtool_channels: the
// command, four maxima, then rx, tx, other and combined) in a struct ifreq.
func setChannels(s int, name string, combined uint32) error {
	req := [9]uint32{0: unix.ETHTOOL_SCHANNELS, 8: combined}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:], name)
	ifr.data = unsafe.Pointer(&req)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); e != 0 {
		return e
	}
	return nil
}
