// Package smaps tells what memory a monitor holds beside its guest's.
package smaps

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Memory is what a monitor holds beside its guest's memory, in bytes.
type Memory struct {
	RSS          uint64 `json:"rss"`
	PSS          uint64 `json:"pss"` // shared pages divided by how many share them
	PrivateDirty uint64 `json:"private_dirty"`
	Guest        uint64 `json:"guest_rss"` // resident guest pages, left out of the two above
}

// Mapping is one entry of /proc/PID/smaps (proc_pid_smaps(5)); sizes in bytes.
type Mapping struct {
	name         string
	size         uint64
	rss, pss     uint64
	privateDirty uint64
	anonymous    uint64
	private      bool // MAP_PRIVATE
	file         bool // backed by a file
	undumped     bool // left out of core dumps
}

// ownDirty is the memory that the process alone keeps from being given back, in bytes. The kernel also calls pages of
// a program's text dirty while its file has not been written back (always on tmpfs); those are not the process's.
func (m Mapping) ownDirty() uint64 {
	if m.private && m.file {
		return min(m.privateDirty, m.anonymous)
	}
	return m.privateDirty
}

// Read sums a process's mappings. Guest memory must be found among them: a sum that counts it would not be the
// monitor's.
func Read(pid int, ram func(Mapping) bool) (*Memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ms, err := parse(f)
	if err != nil {
		return nil, err
	}
	return sum(ms, ram)
}

func sum(ms []Mapping, ram func(Mapping) bool) (*Memory, error) {
	var m Memory
	found := false
	for _, x := range ms {
		if ram(x) {
			found = true
			m.Guest += x.rss
			continue
		}
		m.RSS += x.rss
		m.PSS += x.pss
		m.PrivateDirty += x.ownDirty()
	}
	if !found {
		return nil, fmt.Errorf("smaps: the guest's memory is not among the %d mappings", len(ms))
	}
	return &m, nil
}

// parse reads the mappings with the fields that are counted.
func parse(r io.Reader) ([]Mapping, error) {
	var out []Mapping
	in := bufio.NewScanner(r)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) == 0 {
			continue
		}
		if !strings.HasSuffix(f[0], ":") { // start-end perms offset device inode [name]
			lo, hi, ok := strings.Cut(f[0], "-")
			a, err1 := strconv.ParseUint(lo, 16, 64)
			b, err2 := strconv.ParseUint(hi, 16, 64)
			if !ok || err1 != nil || err2 != nil || b < a || len(f) < 5 {
				return nil, fmt.Errorf("smaps: %q is no mapping", in.Text())
			}
			out = append(out, Mapping{name: strings.Join(f[5:], " "), size: b - a, private: strings.HasSuffix(f[1], "p"), file: f[4] != "0"})
			continue
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("smaps: %q before the first mapping", in.Text())
		}
		m := &out[len(out)-1]
		var to *uint64
		switch f[0] {
		case "Rss:":
			to = &m.rss
		case "Pss:":
			to = &m.pss
		case "Private_Dirty:":
			to = &m.privateDirty
		case "Anonymous:":
			to = &m.anonymous
		case "VmFlags:":
			// "wf" is the runtime's own state of the kernel's random numbers.
			m.undumped = slices.Contains(f, "dd") && !slices.Contains(f, "wf")
			continue
		default:
			continue
		}
		if len(f) != 3 || f[2] != "kB" {
			return nil, fmt.Errorf("smaps: %q is no size", in.Text())
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("smaps: %q is no size", in.Text())
		}
		*to = n << 10
	}
	return out, in.Err()
}

// Named finds guest memory by its mapping's name.
func Named(part string) func(Mapping) bool {
	return func(m Mapping) bool { return strings.Contains(m.name, part) }
}

// Smolvmm finds guest memory of smolvmm's: a memfd, or anonymous memory that is
// kept out of core dumps, as nothing else of its is.
func Smolvmm(m Mapping) bool {
	return strings.Contains(m.name, "memfd:smolvmm-ram") || m.undumped && m.private && !m.file && m.name == ""
}

// Sized finds guest memory that has no name of its own by its exact size.
func Sized(size uint64) func(Mapping) bool {
	return func(m Mapping) bool { return m.size == size }
}
