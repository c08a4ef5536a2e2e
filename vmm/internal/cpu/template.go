package cpu

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// feature is where CPUID tells of a feature, and what falls with it.
type feature struct {
	leaf, index uint32
	reg         byte // 'a', 'b', 'c' or 'd'
	bit         uint
	implies     []string // features that do not work without this one
}

// avx512 names everything that lives in AVX-512 state.
var avx512 = []string{"avx512f", "avx512dq", "avx512ifma", "avx512cd", "avx512bw", "avx512vl",
	"avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq"}

// features has Linux's names (arch/x86/include/asm/cpufeatures.h, as in
// /proc/cpuinfo) for the bits of Intel SDM vol. 2A "CPUID" and AMD APM vol. 3
// appendix E. It is made when a template asks: most starts need none of it.
var features = sync.OnceValue(func() map[string]feature {
	return map[string]feature{
		"sse3": {leaf: 1, reg: 'c', bit: 0}, "pclmulqdq": {leaf: 1, reg: 'c', bit: 1},
		"monitor": {leaf: 1, reg: 'c', bit: 3}, "vmx": {leaf: 1, reg: 'c', bit: 5},
		"ssse3": {leaf: 1, reg: 'c', bit: 9}, "fma": {leaf: 1, reg: 'c', bit: 12},
		"cx16": {leaf: 1, reg: 'c', bit: 13}, "pcid": {leaf: 1, reg: 'c', bit: 17},
		"sse4_1": {leaf: 1, reg: 'c', bit: 19}, "sse4_2": {leaf: 1, reg: 'c', bit: 20},
		"x2apic": {leaf: 1, reg: 'c', bit: 21}, "movbe": {leaf: 1, reg: 'c', bit: 22},
		"popcnt": {leaf: 1, reg: 'c', bit: 23}, "tsc_deadline_timer": {leaf: 1, reg: 'c', bit: 24},
		"aes":   {leaf: 1, reg: 'c', bit: 25},
		"xsave": {leaf: 1, reg: 'c', bit: 26, implies: []string{"osxsave", "avx", "pku", "xsaveopt", "xsavec", "xgetbv1", "xsaves", "mpx"}},
		// osxsave mirrors CR4.OSXSAVE; it is listed so that it falls with xsave.
		"osxsave": {leaf: 1, reg: 'c', bit: 27},
		"avx":     {leaf: 1, reg: 'c', bit: 28, implies: append([]string{"avx2", "fma", "f16c", "vaes", "vpclmulqdq"}, avx512...)},
		"f16c":    {leaf: 1, reg: 'c', bit: 29}, "rdrand": {leaf: 1, reg: 'c', bit: 30},
		"mce": {leaf: 1, reg: 'd', bit: 7}, "mca": {leaf: 1, reg: 'd', bit: 14},
		"pge": {leaf: 1, reg: 'd', bit: 13}, "pat": {leaf: 1, reg: 'd', bit: 16},
		"pse36": {leaf: 1, reg: 'd', bit: 17}, "clflush": {leaf: 1, reg: 'd', bit: 19},
		"ht": {leaf: 1, reg: 'd', bit: 28},

		"fsgsbase": {leaf: 7, reg: 'b', bit: 0}, "tsc_adjust": {leaf: 7, reg: 'b', bit: 1},
		"bmi1": {leaf: 7, reg: 'b', bit: 3}, "hle": {leaf: 7, reg: 'b', bit: 4},
		"avx2": {leaf: 7, reg: 'b', bit: 5, implies: avx512}, "smep": {leaf: 7, reg: 'b', bit: 7},
		"bmi2": {leaf: 7, reg: 'b', bit: 8}, "erms": {leaf: 7, reg: 'b', bit: 9},
		"invpcid": {leaf: 7, reg: 'b', bit: 10}, "rtm": {leaf: 7, reg: 'b', bit: 11},
		"mpx": {leaf: 7, reg: 'b', bit: 14}, "avx512f": {leaf: 7, reg: 'b', bit: 16, implies: avx512[1:]},
		"avx512dq": {leaf: 7, reg: 'b', bit: 17}, "rdseed": {leaf: 7, reg: 'b', bit: 18},
		"adx": {leaf: 7, reg: 'b', bit: 19}, "smap": {leaf: 7, reg: 'b', bit: 20},
		"avx512ifma": {leaf: 7, reg: 'b', bit: 21}, "clflushopt": {leaf: 7, reg: 'b', bit: 23},
		"clwb": {leaf: 7, reg: 'b', bit: 24}, "avx512cd": {leaf: 7, reg: 'b', bit: 28},
		"sha_ni": {leaf: 7, reg: 'b', bit: 29}, "avx512bw": {leaf: 7, reg: 'b', bit: 30},
		"avx512vl": {leaf: 7, reg: 'b', bit: 31}, "avx512vbmi": {leaf: 7, reg: 'c', bit: 1},
		"umip": {leaf: 7, reg: 'c', bit: 2}, "pku": {leaf: 7, reg: 'c', bit: 3},
		"avx512_vbmi2": {leaf: 7, reg: 'c', bit: 6}, "gfni": {leaf: 7, reg: 'c', bit: 8},
		"vaes": {leaf: 7, reg: 'c', bit: 9}, "vpclmulqdq": {leaf: 7, reg: 'c', bit: 10},
		"avx512_vnni": {leaf: 7, reg: 'c', bit: 11}, "avx512_bitalg": {leaf: 7, reg: 'c', bit: 12},
		"avx512_vpopcntdq": {leaf: 7, reg: 'c', bit: 14}, "la57": {leaf: 7, reg: 'c', bit: 16},
		"rdpid": {leaf: 7, reg: 'c', bit: 22}, "fsrm": {leaf: 7, reg: 'd', bit: 4},
		"md_clear": {leaf: 7, reg: 'd', bit: 10}, "ibrs": {leaf: 7, reg: 'd', bit: 26},
		"stibp": {leaf: 7, reg: 'd', bit: 27}, "arch_capabilities": {leaf: 7, reg: 'd', bit: 29},
		"ssbd": {leaf: 7, reg: 'd', bit: 31},

		"xsaveopt": {leaf: 0xD, index: 1, reg: 'a', bit: 0}, "xsavec": {leaf: 0xD, index: 1, reg: 'a', bit: 1},
		"xgetbv1": {leaf: 0xD, index: 1, reg: 'a', bit: 2}, "xsaves": {leaf: 0xD, index: 1, reg: 'a', bit: 3},

		"lahf_lm": {leaf: leafExtended, reg: 'c', bit: 0}, "svm": {leaf: leafExtended, reg: 'c', bit: 2},
		"abm": {leaf: leafExtended, reg: 'c', bit: 5}, "sse4a": {leaf: leafExtended, reg: 'c', bit: 6},
		"3dnowprefetch": {leaf: leafExtended, reg: 'c', bit: 8}, "xop": {leaf: leafExtended, reg: 'c', bit: 11},
		"fma4": {leaf: leafExtended, reg: 'c', bit: 16}, "tbm": {leaf: leafExtended, reg: 'c', bit: 21},
		"topoext": {leaf: leafExtended, reg: 'c', bit: 22},
		"nx":      {leaf: leafExtended, reg: 'd', bit: 20}, "pdpe1gb": {leaf: leafExtended, reg: 'd', bit: 26},
		"rdtscp": {leaf: leafExtended, reg: 'd', bit: 27},
	}
})

// Template says how a guest's CPU differs from what the host offers.
type Template struct {
	baseline bool
	masked   map[string]bool
}

// ParseTemplate reads "host" or "baseline", followed by features to take away:
// "host,-smap,-xsave". What depends on a feature falls with it.
func ParseTemplate(s string) (Template, error) {
	t := Template{masked: map[string]bool{}}
	base, rest, _ := strings.Cut(s, ",")
	switch base {
	case "", "host":
	case "baseline":
		t.baseline = true
		t.mask("xsave")
	default:
		return t, fmt.Errorf("CPU template %q: must begin with host or baseline", s)
	}
	if rest == "" {
		return t, nil
	}
	for _, f := range strings.Split(rest, ",") {
		name, ok := strings.CutPrefix(f, "-")
		if !ok {
			return t, fmt.Errorf("CPU template %q: %q must be -FEATURE (features can only be taken away)", s, f)
		}
		if _, ok := features()[name]; !ok {
			return t, fmt.Errorf("CPU template %q: no feature is called %q (known: %s)", s, name, strings.Join(FeatureNames(), " "))
		}
		t.mask(name)
	}
	return t, nil
}

// FeatureNames are the features that a template can take away.
func FeatureNames() []string {
	var names []string
	for n := range features() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (t *Template) mask(name string) {
	if t.masked[name] {
		return
	}
	t.masked[name] = true
	for _, n := range features()[name].implies {
		t.mask(n)
	}
}

// has says whether the template takes the feature away.
func (t Template) has(name string) bool { return t.masked[name] }

// baselineBits is what the baseline leaves of each feature register: x86-64-v2
// (psABI) less whatever needs XSAVE, and what every x86 server since 2013 has.
// A register that is not here is cleared when its leaf tells of features.
var baselineBits = sync.OnceValue(func() map[uint32][4]uint32 {
	return map[uint32][4]uint32{
		// EBX passes: it holds the topology, not features.
		leafFeatures: {^uint32(0), ^uint32(0),
			1<<0 | 1<<1 | 1<<9 | 1<<13 | 1<<19 | 1<<20 | 1<<21 | 1<<23 | 1<<24 | 1<<25 | 1<<30 | 1<<31,
			0x1f8bfbff},
		leafStructured: {0, 1<<7 | 1<<9, 0, 0}, // SMEP, ERMS
		leafExtended:   {^uint32(0), 0, 1 << 0, 1<<11 | 1<<20 | 1<<27 | 1<<29},
		leafSizes:      {^uint32(0), 0, ^uint32(0), 0},
		// KVM's own: kvmclock in both forms, no I/O delay, a stable clock
		// (Documentation/virt/kvm/x86/cpuid.rst).
		leafHypervisor + 1: {1<<0 | 1<<1 | 1<<3 | 1<<24, 0, 0, 0},
	}
})

// baselineLeaves are the leaves that baseline keeps besides those above: what
// names the processor, its caches and topology, and the hypervisor. All others
// read as zero, so that no host's extras show.
var baselineLeaves = sync.OnceValue(func() map[uint32]bool {
	return map[uint32]bool{
		0: true, leafCache: true, leafHypervisor: true, leafXSave: true,
		0x8000_0000: true, leafBrandFirst: true, leafBrandFirst + 1: true, leafBrandLast: true,
		leafPower: true, leafAMDCache: true, leafAMDTopo: true,
	}
})

// baselineBrand names the CPU the same on every host (48 bytes, NUL-padded).
const baselineBrand = "smolvmm baseline x86-64-v2"

func (t Template) apply(e *kvm.CPUIDEntry) {
	if t.baseline {
		switch {
		case e.Function == leafStructured && e.Index > 0:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case e.Function >= leafBrandFirst && e.Function <= leafBrandLast:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
			brand(e, baselineBrand)
		default:
			if m := baselineBits()[e.Function]; !baselineLeaves()[e.Function] {
				e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&m[0], e.EBX&m[1], e.ECX&m[2], e.EDX&m[3]
			}
		}
	}
	for name := range t.masked {
		f := features()[name]
		if f.leaf != e.Function || f.index != e.Index {
			continue
		}
		switch f.reg {
		case 'a':
			e.EAX &^= 1 << f.bit
		case 'b':
			e.EBX &^= 1 << f.bit
		case 'c':
			e.ECX &^= 1 << f.bit
		case 'd':
			e.EDX &^= 1 << f.bit
		}
	}
}
