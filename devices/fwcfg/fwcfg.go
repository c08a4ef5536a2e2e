// Package fwcfg is QEMU's firmware configuration device with its traditional
// port interface (QEMU docs/specs/fw_cfg.rst): named byte strings that the guest
// reads through a selector and a data port. It is how configuration and secrets
// reach a guest without touching its disk or its command line.
//
// The DMA interface is left out: it writes guest memory for the sake of speed
// that a few kilobytes do not need, and feature bit 1 says that it is not there.
package fwcfg

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/devices"
)

// Where a PC has the device (fw_cfg.rst, "Register Locations").
const (
	Base = 0x510 // first port
	Size = 2     // ports: the selector is 16 bits wide and overlaps the data port
)

// The registers (fw_cfg.rst, "Guest-side Hardware Interface").
//
//	off  width  what      section
//	0    16     selector  Selector (Control) Register, write-only, little-endian
//	1    8      data      Data Register; writes are ignored
const (
	portSelector = 0
	portData     = 1
)

// Selector bits (fw_cfg.rst, "Selector (Control) Register").
const (
	selWrite = 1 << 14 // write mode: nothing is writable, the item is the same
	selArch  = 1 << 15 // architecture-specific items: there are none
)

// Keys (fw_cfg.rst, "Firmware Configuration Items").
const (
	keySignature = 0x0000 // "QEMU"
	keyID        = 0x0001 // feature bitmap, 32 bits, little-endian
	keyFileDir   = 0x0019 // the directory, big-endian
	keyFileFirst = 0x0020 // the first file
)

// featTraditional is bit 0 of the feature bitmap; bit 1 would be DMA.
const featTraditional = 1

const (
	// dirEntry is the size of struct FWCfgFile in bytes: size, selector, two
	// reserved, a name of 56 with its NUL (fw_cfg.rst, "File Directory").
	dirEntry = 64

	// MaxName is the longest name in bytes: 56 less the NUL.
	MaxName = 55
	// MaxItems bounds the files; the selector would allow 0x4000 - 0x20.
	MaxItems = 1024
	// MaxItem and MaxTotal bound one value and all of them, in bytes. The
	// directory's size field is 32 bits wide; a port read gives one byte, so
	// more than this would take a guest minutes.
	MaxItem  = 16 << 20
	MaxTotal = 64 << 20
)

// Device is the fw_cfg device. It is a devices.Region of Size ports and
// devices.Stateful.
type Device struct {
	mu       sync.Mutex
	items    []Item // sorted by name: keyFileFirst and on
	dir      []byte
	selector uint16
	selected secret // what selector stands for; nil where there is nothing
	offset   int    // into selected, never beyond it
	closed   bool
}

var (
	_ devices.Region   = (*Device)(nil)
	_ devices.Stateful = (*Device)(nil)
)

// New makes a device with copies of the items, which Close wipes; the caller's
// own are the caller's to Wipe, when no machine needs them any more. Files get
// their keys in the order of their names, as QEMU gives them.
func New(items []Item) (*Device, error) {
	if len(items) > MaxItems {
		return nil, fmt.Errorf("fw_cfg: %d items, at most %d are possible", len(items), MaxItems)
	}
	d := &Device{items: slices.Clone(items)}
	total := 0
	slices.SortFunc(d.items, func(a, b Item) int { return strings.Compare(a.name, b.name) })
	for i, it := range d.items {
		if it.value == nil {
			return nil, fmt.Errorf("fw_cfg: item %d is empty: make it with NewItem", i)
		}
		if i > 0 && d.items[i-1].name == it.name {
			return nil, fmt.Errorf("fw_cfg: two items are named %q", it.name)
		}
		total += len(it.value.bytes())
	}
	if total > MaxTotal {
		return nil, fmt.Errorf("fw_cfg: items of %d bytes in all, at most %d are possible", total, MaxTotal)
	}
	for i := range d.items {
		it := &d.items[i]
		it.value = hide(bytes.Clone(it.value.bytes()))
	}
	d.dir = d.directory()
	d.choose(keySignature)
	return d, nil
}

// directory makes struct FWCfgFiles.
func (d *Device) directory() []byte {
	b := make([]byte, 4+dirEntry*len(d.items))
	binary.BigEndian.PutUint32(b, uint32(len(d.items)))
	for i, it := range d.items {
		e := b[4+dirEntry*i:]
		binary.BigEndian.PutUint32(e, uint32(len(it.value.bytes())))
		binary.BigEndian.PutUint16(e[4:], uint16(keyFileFirst+i))
		copy(e[8:8+MaxName], it.name)
	}
	return b
}

var (
	signature = hide([]byte("QEMU"))
	features  = hide([]byte{featTraditional, 0, 0, 0})
)

// choose selects a key and goes back to its start. The lock is held.
func (d *Device) choose(selector uint16) {
	d.selector, d.offset, d.selected = selector, 0, nil
	if d.closed || selector&selArch != 0 {
		return
	}
	switch key := selector &^ selWrite; key {
	case keySignature:
		d.selected = signature
	case keyID:
		d.selected = features
	case keyFileDir:
		d.selected = hide(d.dir)
	default:
		if it := d.file(selector); it != nil {
			d.selected = it.value
		}
	}
}

// file is the item that a selector stands for, nil if it is none.
func (d *Device) file(selector uint16) *Item {
	key := selector &^ selWrite
	if selector&selArch == 0 && key >= keyFileFirst && int(key)-keyFileFirst < len(d.items) {
		return &d.items[key-keyFileFirst]
	}
	return nil
}

// Read answers an access. The data port is eight bits wide and gives the next
// byte; the selector is write-only, and a read that is neither is left as the bus
// has set it.
func (d *Device) Read(off uint64, p []byte) {
	if off == portData && len(p) == 1 {
		d.ReadMany(off, p)
	}
}

// ManyReader is what a device implements to answer a string input (REP INSB) in
// one call: len(p) byte reads of the same port, in order.
type ManyReader interface {
	ReadMany(off uint64, p []byte)
}

var _ ManyReader = (*Device)(nil)

// ReadMany reads the data port len(p) times. Past the item's end it reads 0.
func (d *Device) ReadMany(off uint64, p []byte) {
	if off != portData {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.selected.bytes()[d.offset:])
	d.offset += n
	clear(p[n:])
}

// Write takes an access. Two bytes to the selector select; bytes written to the
// data port are ignored, as QEMU has done since 2.4.
func (d *Device) Write(off uint64, p []byte) {
	if off != portSelector || len(p) != 2 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.choose(binary.LittleEndian.Uint16(p))
}

// Close wipes the device's copy of the values. It then has no items.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.choose(d.selector)
	for _, it := range d.items {
		it.Wipe()
	}
	d.items, d.dir = nil, nil
	return nil
}
