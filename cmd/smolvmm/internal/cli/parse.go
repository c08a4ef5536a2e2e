package cli

import (
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
)

// ParseSize reads 256, 256M, 1G: mebibytes without a unit, as QEMU's -m has it.
func ParseSize(s string) (uint64, error) {
	shift := 20
	digits := s
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			shift, digits = 10, s[:n-1]
		case 'm', 'M':
			digits = s[:n-1]
		case 'g', 'G':
			shift, digits = 30, s[:n-1]
		}
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case err != nil:
		return 0, Usagef("-memory %q: give a size like 256, 256M or 1G", s)
	case v > vmm.MaxMemory>>shift || v<<shift < vmm.MinMemory:
		return 0, Usagef("-memory %s: must be between 1M and 64G", s)
	case v<<shift%vmm.MemoryUnit != 0:
		return 0, Usagef("-memory %s: must be a multiple of 4K", s)
	}
	return v << shift, nil
}

// parseDisk reads FILE[,ro][,overlay[=FILE]][,serial=ID]. A comma in a file
// name is written twice, as in QEMU.
func parseDisk(s string) (vmm.Disk, error) {
	parts := splitCommas(s)
	d := vmm.Disk{Path: parts[0]}
	if d.Path == "" {
		return d, Usagef("-disk %q: no file named", s)
	}
	for _, o := range parts[1:] {
		key, value, has := strings.Cut(o, "=")
		switch {
		case o == "ro":
			d.ReadOnly = true
		case o == "overlay":
			d.Overlay = true
		case key == "overlay" && value != "":
			d.Overlay, d.OverlayPath = true, value
		case key == "serial" && has:
			d.Serial = value
		default:
			return d, Usagef("-disk %q: %q is no option: ro, overlay, overlay=FILE, serial=ID (a comma in a file name is written twice)", s, o)
		}
	}
	return d, nil
}

// splitCommas splits at single commas; two stand for one. There is always a
// first part, which may be empty.
func splitCommas(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			parts = append(parts, b.String())
			b.Reset()
		}
	}
	return append(parts, b.String())
}
