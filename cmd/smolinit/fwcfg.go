package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ports are the machine's I/O ports.
type ports interface {
	out8(port uint16, v uint8)
	out16(port uint16, v uint16)
	in8(port uint16, p []byte) // one byte of the port for each of p
}

// The fw_cfg device (QEMU docs/specs/fw_cfg.rst, "Register Locations" and
// "Firmware Configuration Items").
const (
	fwcfgSelector = 0x510 // 16 bits, little-endian
	fwcfgData     = 0x511
	keySignature  = 0x0000
	keyFileDir    = 0x0019
	dirEntry      = 64 // struct FWCfgFile: size, selector (both big-endian), two reserved, a name of 56
)

// Bounds on what is read: a byte costs an exit to the host where string I/O
// is not batched.
const (
	maxFiles     = 4096
	maxItem      = 16 << 20
	maxAllItems  = 64 << 20
	configPrefix = "opt/smolvmm/"
)

// items are what the host has put under opt/smolvmm/.
type items struct {
	config  []byte // init.json; nil where there is none
	env     map[string]string
	files   map[string][]byte
	secrets map[string][]byte
	agent   []byte   // the key of those who may talk to the agent; nil: there is none
	notes   []string // what was not understood
}

// errNoChannel says that there is no fw_cfg device.
var errNoChannel = errors.New("no fw_cfg device")

// readItems reads everything under opt/smolvmm/.
func readItems(p ports) (*items, error) {
	sig := make([]byte, 4)
	p.out16(fwcfgSelector, keySignature)
	p.in8(fwcfgData, sig)
	if string(sig) != "QEMU" {
		return nil, errNoChannel
	}
	p.out16(fwcfgSelector, keyFileDir)
	count := make([]byte, 4)
	p.in8(fwcfgData, count)
	n := binary.BigEndian.Uint32(count)
	if n > maxFiles {
		return nil, fmt.Errorf("fw_cfg: a directory of %d files; at most %d are read", n, maxFiles)
	}
	dir := make([]byte, n*dirEntry)
	p.in8(fwcfgData, dir)

	it := &items{env: map[string]string{}, files: map[string][]byte{}, secrets: map[string][]byte{}}
	total := uint64(0)
	for ; len(dir) > 0; dir = dir[dirEntry:] {
		size, key := binary.BigEndian.Uint32(dir), binary.BigEndian.Uint16(dir[4:])
		name, _, _ := strings.Cut(string(dir[8:dirEntry]), "\x00")
		if name == "" {
			return nil, errors.New("fw_cfg: the directory is damaged: a file without a name")
		}
		rest, ours := strings.CutPrefix(name, configPrefix)
		if !ours {
			continue
		}
		if total += uint64(size); size > maxItem || total > maxAllItems {
			return nil, fmt.Errorf("fw_cfg: %s has %d bytes; at most %d each and %d in all are read", name, size, maxItem, maxAllItems)
		}
		value := make([]byte, size)
		p.out16(fwcfgSelector, key)
		p.in8(fwcfgData, value)
		if err := it.add(rest, value); err != nil {
			return nil, fmt.Errorf("fw_cfg: %w", err)
		}
	}
	return it, nil
}

// add sorts one value in by its name behind opt/smolvmm/.
func (it *items) add(name string, value []byte) error {
	kind, rest, _ := strings.Cut(name, "/")
	switch kind {
	case "env":
		if err := checkVariable(rest, string(value)); err != nil {
			return err
		}
		it.env[rest] = string(value)
	case "file":
		if err := checkItemName("file", rest); err != nil {
			return err
		}
		it.files[rest] = value
	case "secret":
		if err := checkItemName("secret", rest); err != nil {
			return err
		}
		it.secrets[rest] = value
	default:
		switch name {
		case "init.json":
			it.config = value
			return nil
		case "agent":
			it.agent = value
			return nil
		}
		// A newer smolvmm may know more kinds.
		it.notes = append(it.notes, fmt.Sprintf("fw_cfg: %s%s is not known here and left alone", configPrefix, name))
	}
	return nil
}

// The project's own ports (docs/guest-contract.md).
const (
	portExit = 0x501 // a byte, the exit status: ends the machine
	portMark = 0x502 // a byte, a milestone

	markInit = 16 // init is running
)
