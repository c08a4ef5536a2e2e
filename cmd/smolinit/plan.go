package main

import (
	"io/fs"

	"github.com/smolvmm/smolvmm/builder/toolbox/devnodes"
)

// node is a device node that programs expect.
type node struct {
	name         string
	block        bool
	perm         fs.FileMode
	major, minor uint32
	needed       bool // most programs fail without it
}

// nodes are /dev.
var nodes = func() (list []node) {
	for _, n := range devnodes.All() {
		list = append(list, node{n.Name, n.Block, fs.FileMode(n.Perm), n.Major, n.Minor, n.Needed})
	}
	return list
}()

// dev is NetBSD's dev_t of a node (sys/types.h makedev).
func (n node) dev() uint64 {
	return uint64(n.major)<<8&0x000fff00 | uint64(n.minor)<<12&0xfff00000 | uint64(n.minor)&0xff
}

// kind is the type bits of the node's mode (sys/stat.h).
func (n node) kind() uint32 {
	if n.block {
		return 0o060000
	}
	return 0o020000
}

// ownMounts are made where their directory exists, and silently left out where
// it does not or the kernel has no such file system.
var ownMounts = []Mount{
	{Type: "tmpfs", Target: "/tmp", Mode: 0o1777},
	{Type: "tmpfs", Target: "/var/run", Mode: 0o755},
	{Type: "kernfs", Target: "/kern"},
	{Type: "procfs", Target: "/proc"},
	{Type: "ptyfs", Target: "/dev/pts"},
}
