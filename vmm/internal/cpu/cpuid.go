package cpu

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// APICBusKHz is the rate at which KVM's local APIC timer counts: one cycle a
// nanosecond (APIC_BUS_CYCLE_NS in arch/x86/kvm/lapic.h).
const APICBusKHz = 1_000_000

// CPUID leaves that are made here rather than passed on.
const (
	leafFeatures   = 0x1
	leafCache      = 0x4
	leafStructured = 0x7
	leafTopology   = 0xB
	leafXSave      = 0xD
	leafTSC        = 0x15
	leafFrequency  = 0x16
	leafTopologyV2 = 0x1F
	leafHypervisor = 0x4000_0000 // signature and highest hypervisor leaf
	leafTiming     = 0x4000_0010 // TSC and APIC bus frequency, as VMware and QEMU give them
	leafExtended   = 0x8000_0001
	leafPower      = 0x8000_0007
	leafSizes      = 0x8000_0008
	leafSVM        = 0x8000_000A
	leafAMDCache   = 0x8000_001D
	leafAMDTopo    = 0x8000_001E
	leafAMDTopoV2  = 0x8000_0026
	leafBrandFirst = 0x8000_0002
	leafBrandLast  = 0x8000_0004
)

// invariantTSC is bit 8 of leaf 0x80000007's EDX (Intel SDM vol. 3B §18.17.1).
const invariantTSC = 1 << 8

// A guest never gets virtualisation of its own: nested KVM would be the largest
// piece of the host's kernel within its reach, and has state that no vCPU state
// here carries. Bit 5 of leaf 1's ECX, bit 2 of leaf 0x80000001's.
const (
	vmx = 1 << 5
	svm = 1 << 2
)

// Host is what one host and its KVM offer every vCPU of a machine.
type Host struct {
	Supported    []kvm.CPUIDEntry // KVM_GET_SUPPORTED_CPUID
	TSCKHz       uint32
	InvariantTSC bool // the host's own clock relies on its TSC
	// Brand is the host processor's name, 48 bytes of ASCII at most. KVM's own
	// list leaves it empty.
	Brand string
}

// Build makes the CPUID leaves of vCPU id out of count.
//
// The host's own frequency leaves 0x15 and 0x16 are left out, so that guests
// believe leaf 0x40000010 (an Intel guest would prefer 0x15, whose crystal a
// hypervisor cannot vouch for). The Xen signature is never shown: NetBSD's PVH
// entry would make a hypercall.
func Build(h Host, t Template, id, count int) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, 0, len(h.Supported)+4)
	for _, e := range h.Supported {
		switch {
		case e.Function == leafTSC, e.Function == leafFrequency,
			e.Function == leafTopology, e.Function == leafTopologyV2, e.Function == leafAMDTopoV2,
			e.Function > leafHypervisor+1 && e.Function < leafHypervisor+0x1000,
			e.Function == leafSVM:
			continue
		}
		brand(&e, h.Brand)
		t.apply(&e)
		topology(&e, id, count)
		switch e.Function {
		case leafFeatures:
			e.ECX |= 1 << 31 // running under a hypervisor
			e.ECX &^= vmx
		case leafExtended:
			e.ECX &^= svm
		case leafHypervisor:
			e.EAX = leafTiming
			e.EBX, e.ECX, e.EDX = 0x4b4d564b, 0x564b4d56, 0x0000004d // "KVMKVMKVM\0\0\0"
		case leafPower:
			if h.InvariantTSC {
				e.EDX |= invariantTSC
			}
		}
		out = append(out, e)
	}
	if t.has("xsave") {
		out = slices.DeleteFunc(out, func(e kvm.CPUIDEntry) bool { return e.Function == leafXSave })
	}
	if h.InvariantTSC && find(out, leafPower, 0) == nil {
		out = append(out, kvm.CPUIDEntry{Function: leafPower, EDX: invariantTSC})
	}
	out = append(out, kvm.CPUIDEntry{Function: leafTiming, EAX: h.TSCKHz, EBX: APICBusKHz})
	return append(out, topologyLeaves(id, count)...)
}

// brand puts a name into an empty brand string leaf (Intel SDM vol. 2A, CPUID,
// "Processor Brand String").
func brand(e *kvm.CPUIDEntry, name string) {
	if e.Function < leafBrandFirst || e.Function > leafBrandLast || e.EAX|e.EBX|e.ECX|e.EDX != 0 {
		return
	}
	var b [48]byte
	copy(b[:47], name)
	for i, r := range []*uint32{&e.EAX, &e.EBX, &e.ECX, &e.EDX} {
		*r = binary.LittleEndian.Uint32(b[int(e.Function-leafBrandFirst)*16+4*i:])
	}
}

// find gives the leaf and sub-leaf in place.
func find(es []kvm.CPUIDEntry, function, index uint32) *kvm.CPUIDEntry {
	for i := range es {
		e := &es[i]
		if e.Function == function && (e.Flags&kvm.CPUIDSignificantIndex == 0 || e.Index == index) {
			return e
		}
	}
	return nil
}

// topology makes a leaf tell of count one-thread cores in one package, whose
// APIC IDs are their indices.
func topology(e *kvm.CPUIDEntry, id, count int) {
	switch e.Function {
	case leafFeatures: // Intel SDM vol. 2A, CPUID, leaf 01H
		e.EBX = e.EBX&0x0000_ffff | uint32(id)<<24 | uint32(count)<<16
		e.EDX &^= 1 << 28
		if count > 1 {
			e.EDX |= 1 << 28 // HTT: EBX's count is valid
		}
	case leafCache: // leaf 04H: bits 25:14 sharers, 31:26 cores in the package
		if e.EAX&0x1f != 0 {
			e.EAX = e.EAX&0x3fff | sharers(e.EAX, count)<<14 | uint32(count-1)<<26
		}
	case leafAMDCache: // AMD APM vol. 3, Fn8000_001D: bits 25:14 sharers
		if e.EAX&0x1f != 0 {
			e.EAX = e.EAX&0x3fff | sharers(e.EAX, count)<<14
		}
	case leafSizes: // AMD APM vol. 3, Fn8000_0008: ECX 7:0 threads - 1, 15:12 APIC ID bits
		e.ECX = uint32(count-1) | uint32(apicIDBits(count))<<12
	case leafAMDTopo: // Fn8000_001E: extended APIC ID, core ID, node ID
		e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
	}
}

// sharers is the number of threads, less one, that share a cache whose type and
// level are in eax bits 4:0 and 7:5: all of them from level 3 on.
func sharers(eax uint32, count int) uint32 {
	if eax>>5&7 >= 3 {
		return uint32(count - 1)
	}
	return 0
}

// topologyLeaves are leaf 0BH's levels: one thread a core, then the package.
func topologyLeaves(id, count int) []kvm.CPUIDEntry {
	leaf := func(index, shift, n, kind uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{
			Function: leafTopology, Index: index, Flags: kvm.CPUIDSignificantIndex,
			EAX: shift, EBX: n, ECX: kind<<8 | index, EDX: uint32(id),
		}
	}
	return []kvm.CPUIDEntry{
		leaf(0, 0, 1, 1),
		leaf(1, uint32(apicIDBits(count)), uint32(count), 2),
		leaf(2, 0, 0, 0),
	}
}

func apicIDBits(count int) int { return bits.Len(uint(count - 1)) }
