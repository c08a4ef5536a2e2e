// Package devnodes has the device nodes that programs on NetBSD/amd64 expect: for the
// images that are built, and for smolinit where an image lacks them.
package devnodes

// Node is a device node, as it stands in /dev.
type Node struct {
	Name         string // may be below a directory: pts is made beside the nodes
	Block        bool
	Perm         uint16
	Major, Minor uint32
	Needed       bool // most programs fail without it
}

// Majors and minors of disks (sys/arch/amd64/conf/majors.amd64; amd64's disklabel.h and
// sys/disklabel.h, DISKMINOR: unlike i386, amd64 has all partitions of a unit in a row).
const (
	BlockLD, CharLD = 19, 69
	MajorDK         = 168
	Partitions      = 16 // minors of one unit
	WholeDisk       = 3  // partition d
	Disks           = 4  // units that there are nodes for
)

// All gives the nodes. Majors: NetBSD sys/arch/amd64/conf/majors.amd64 and
// sys/conf/majors; minors: sys/conf.h (DEV_NULL and so on), kern/tty_ptm.c,
// dev/cons.c, etc/MAKEDEV.tmpl.
func All() []Node {
	list := []Node{
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
	}
	for unit := range uint32(Disks) {
		digit := string(rune('0' + unit))
		for _, part := range []uint32{0, WholeDisk, 4} {
			letter := string(rune('a' + part))
			minor := unit*Partitions + part
			list = append(list,
				Node{"ld" + digit + letter, true, 0o640, BlockLD, minor, false},
				Node{"rld" + digit + letter, false, 0o640, CharLD, minor, false})
		}
		list = append(list,
			Node{"dk" + digit, true, 0o640, MajorDK, unit, false},
			Node{"rdk" + digit, false, 0o640, MajorDK, unit, false})
	}
	return list
}
