package boot

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// The gate's bounds, in parts of QEMU's: twice and more of what was measured on a quiet machine, so that only a change
// of the program passes them. The first is the suite's goal.
const (
	gateCPU     = 0.30 // processor time to the first instruction; 0.14 measured
	gateFaults  = 0.30 // page faults; 0.15 measured
	gateVersion = 0.50 // --version
)

// Pair are smolvmm and QEMU of the subjects that are there.
func Pair(subjects []Subject) []Subject {
	return slices.DeleteFunc(slices.Clone(subjects), func(s Subject) bool { return s.name != nameOurs && s.name != nameQEMU })
}

// Gate puts what the gate looks at into a set, and its bounds: figures in parts of QEMU's of the same rounds, and those
// that are the same on any machine. It is an error if there is nothing to hold smolvmm against.
func (r *Report) Gate(to *figures.Set, stripped int64) error {
	var list []figureOf
	for _, f := range bootFigures() {
		if slices.Contains([]string{"boot/first-instruction", "boot/cpu", "boot/page-faults", "boot/version"}, f.id) {
			f.id = "gate/" + strings.TrimPrefix(f.id, "boot/")
			list = append(list, f)
		}
	}
	r.into(to, append(list, figureOf{"gate/private-dirty", whatTiny, memoryMetric(dirty.name, func(m *smaps.Memory) uint64 { return m.PrivateDirty })}), false)
	for _, b := range []struct {
		id    string
		bound float64
	}{{"gate/first-instruction", goalQEMU}, {"gate/cpu", gateCPU}, {"gate/page-faults", gateFaults}, {"gate/version", gateVersion}} {
		f := to.Figure(b.id)
		if f == nil || f.Of(nameOurs) == nil || f.Of(nameQEMU) == nil {
			return fmt.Errorf("%s: measured of smolvmm and QEMU alone: one of them is not there", b.id)
		}
		v, w := figures.Both(f.Of(nameOurs).Values, f.Of(nameQEMU).Values)
		if len(v) == 0 {
			return fmt.Errorf("%s: no round in which both started", b.id)
		}
		to.AddGoal(f.What+", of QEMU's", b.bound, "", stats.Compare(v, w, stats.Ratio), len(v))
	}
	x := to.Figure("gate/private-dirty")
	if x == nil || x.Of(nameOurs) == nil || x.Of(nameOurs).Summary.N == 0 {
		return errors.New("gate/private-dirty: not measured")
	}
	s := x.Of(nameOurs).Summary
	to.AddGoal(x.What, goalDirty, "MiB", stats.Interval{Value: s.Median, Low: s.P10, High: s.P90}, s.N)
	sizeGoal(to, stripped)
	return nil
}

// Stripped is a program's size in bytes without its symbols and what debuggers read; size is the file's, and comes back
// where it is no ELF file.
func Stripped(program string, size int64) int64 {
	f, err := elf.Open(program)
	if err != nil {
		return size
	}
	defer f.Close()
	left := size
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 && s.Type != elf.SHT_NOBITS && s.Name != ".shstrtab" {
			left -= int64(s.FileSize)
		}
	}
	if left < 0 {
		return size
	}
	return left
}
