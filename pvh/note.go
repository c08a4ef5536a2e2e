package pvh

import (
	"encoding/binary"
	"strings"
)

const (
	// Note types of owner "Xen" (xen/include/public/elfnote.h).
	xenNoteGuestOS     = 6  // XEN_ELFNOTE_GUEST_OS, a string
	xenNotePhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY, 4 or 8 bytes

	// netbsdNoteIdent is NT_NETBSD_IDENT of owner "NetBSD" (sys/exec_elf.h).
	netbsdNoteIdent = 1

	// maxNotes bounds the bytes read of one area of notes, and of all.
	maxNotes    = 64 << 10
	maxAllNotes = 256 << 10
)

// Names of guests in Entry.OS, as their GUEST_OS notes have them.
const (
	osNetBSD = "NetBSD"
	osLinux  = "linux"
)

// notes are what the loader takes from a kernel's ELF notes.
type notes struct {
	found bool
	entry uint32
	os    string
	wide  uint64 // an entry that does not fit 32 bits, or 0
}

// scan goes through an area of notes (System V ABI, chapter 5, "Note
// Section"): namesz, descsz, type, then name and descriptor, each padded to
// align. It stops at the first note that does not fit.
func (n *notes) scan(b []byte, align uint64) {
	for len(b) >= 12 {
		namesz := uint64(binary.LittleEndian.Uint32(b))
		descsz := uint64(binary.LittleEndian.Uint32(b[4:]))
		typ := binary.LittleEndian.Uint32(b[8:])
		desc := roundUp(12+namesz, align)
		if desc+descsz > uint64(len(b)) {
			return
		}
		n.note(strings.TrimRight(string(b[12:12+min(namesz, 16)]), "\x00"), typ, b[desc:desc+descsz])
		b = b[min(roundUp(desc+descsz, align), uint64(len(b))):]
	}
}

func roundUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }

func (n *notes) note(owner string, typ uint32, desc []byte) {
	switch {
	case owner == "Xen" && typ == xenNotePhys32Entry && !n.found:
		var v uint64
		switch len(desc) {
		case 4:
			v = uint64(binary.LittleEndian.Uint32(desc))
		case 8:
			v = binary.LittleEndian.Uint64(desc)
		default:
			return
		}
		if v != uint64(uint32(v)) {
			n.wide = v
			return
		}
		n.entry, n.found = uint32(v), true
	case owner == "Xen" && typ == xenNoteGuestOS && n.os == "" && len(desc) <= 32:
		n.os = strings.TrimRight(string(desc), "\x00")
	case owner == "NetBSD" && typ == netbsdNoteIdent:
		n.os = osNetBSD
	}
}

// readNotes looks for the entry point and the kernel's name.
func (img *image) readNotes(src source) error {
	if err := img.scanAreas(src, img.areas); err != nil {
		return err
	}
	if !img.notes.found {
		if err := img.scanAreas(src, img.sectionNotes(src)); err != nil {
			return err
		}
	}
	switch {
	case !img.notes.found && img.notes.wide != 0:
		return fail(img.name, ErrEntry, "its PVH entry point %#x is beyond 4 GiB", img.notes.wide)
	case !img.notes.found:
		return fail(img.name, ErrNoNote, "not a PVH kernel: it has no Xen PHYS32_ENTRY note (take NetBSD's netbsd-MICROVM, from 11.0 on, or a Linux vmlinux with CONFIG_PVH)")
	}
	entry := uint64(img.notes.entry)
	for _, s := range img.segments {
		if entry >= s.Addr && entry-s.Addr < s.filesz {
			return nil
		}
	}
	return fail(img.name, ErrEntry, "its PVH entry point %#x lies in none of its segments", entry)
}

func (img *image) scanAreas(src source, areas []noteArea) error {
	var total uint64
	for _, a := range areas {
		if total += a.size; a.size > maxNotes || total > maxAllNotes {
			return fail(img.name, ErrFormat, "notes of %d bytes: at most %d are read", max(a.size, total), maxNotes)
		}
		b := make([]byte, a.size)
		if err := src.readAt(b, a.off); err != nil {
			return img.readError(err)
		}
		img.notes.scan(b, a.align)
	}
	return nil
}
