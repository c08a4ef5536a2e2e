package main

import "io/fs"

// node is a device node that programs expect.
type node struct {
	name         string
	block        bool
	perm         fs.FileMode
	major, minor uint32
	needed       bool // most programs fail without it
}

// nodes are /dev. Majors: NetBSD
// sys/arch/amd64/conf/majors.amd64 and sys/conf/majors; minors: sys/conf.h
// (DEV_NULL and so on), kern/tty_ptm.c, dev/cons.c, etc/MAKEDEV.tmpl.
var nodes = append([]node{
	{"console", false, 0o600, 0, 0, true},
	{"constty", false, 0o600, 0, 1, false},
	{"tty", false, 0o666, 1, 0, true},
	{"mem", false, 0o640, 2, 0, false},
	{"kmem", false, 0o640, 2, 1, false},
	{"null", false, 0o666, 2, 2, true},
	{"full", false, 0o666, 2, 11, false},
	{"zero", false, 0o666, 2, 12, true},
	{"klog", false, 0o600, 7, 0, false},
	{"tty00", false, 0o600, 8, 0, false},
	{"stdin", false, 0o666, 22, 0, false},
	{"stdout", false, 0o666, 22, 1, false},
	{"stderr", false, 0o666, 22, 2, false},
	{"bpf", false, 0o600, 23, 0, false},
	{"random", false, 0o444, 46, 0, true},
	{"urandom", false, 0o644, 46, 1, true},
	{"ptmx", false, 0o666, 165, 0, false},
	{"ptm", false, 0o666, 165, 1, false},
	{"drvctl", false, 0o644, 167, 0, false},
	{"cpuctl", false, 0o644, 188, 0, false},
}, diskNodes()...)

const (
	blockLD, charLD = 19, 69
	majorDK         = 168
	partitions      = 8 // minors of one unit before the ninth partition's (amd64 disklabel.h)
)

// diskNodes are four VirtIO disks with the partitions a, d (the whole disk on
// amd64) and e, and four wedges.
func diskNodes() []node {
	var list []node
	for unit := range uint32(4) {
		digit := string(rune('0' + unit))
		for _, part := range []uint32{0, 3, 4} {
			letter := string(rune('a' + part))
			minor := unit*partitions + part
			list = append(list,
				node{"ld" + digit + letter, true, 0o640, blockLD, minor, false},
				node{"rld" + digit + letter, false, 0o640, charLD, minor, false})
		}
		list = append(list,
			node{"dk" + digit, true, 0o640, majorDK, unit, false},
			node{"rdk" + digit, false, 0o640, majorDK, unit, false})
	}
	return list
}

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
