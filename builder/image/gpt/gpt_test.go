package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

func example(size int64) Disk {
	return Disk{Size: size, ID: NewGUID([]byte("a disk")), Parts: []Partition{
		{Type: NetBSDFFS(), ID: NewGUID([]byte("one")), Name: "webroot", Off: Align, Size: 4 << 20},
		{Type: NetBSDFFS(), ID: NewGUID([]byte("two")), Name: "däta", Off: 5 << 20, Size: size - 5<<20 - Overhead},
	}}
}

func file(t *testing.T, d Disk) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(d.Size); err != nil {
		t.Fatal(err)
	}
	if err := Write(f, d); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// TestTables reads both tables as the UEFI specification describes them.
func TestTables(t *testing.T) {
	d := example(20 << 20)
	b, err := os.ReadFile(file(t, d))
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != d.Size {
		t.Fatalf("the disk has %d bytes, %d written", d.Size, len(b))
	}
	le := binary.LittleEndian
	last := uint64(d.Size/512 - 1)
	if b[510] != 0x55 || b[511] != 0xaa || b[446+4] != 0xee || le.Uint32(b[446+8:]) != 1 || uint64(le.Uint32(b[446+12:])) != last {
		t.Errorf("no protective MBR: % x", b[446:512])
	}
	if strings.Trim(string(b[462:510]), "\x00") != "" {
		t.Error("the MBR has a second partition: NetBSD would not take it as protective")
	}
	for self, other := range map[uint64]uint64{1: last, last: 1} {
		h := b[self*512:][:92]
		sum := le.Uint32(h[16:])
		zeroed := append([]byte{}, h...)
		le.PutUint32(zeroed[16:], 0)
		if string(h[:8]) != "EFI PART" || le.Uint32(h[8:]) != 0x10000 || le.Uint32(h[12:]) != 92 || crc32.ChecksumIEEE(zeroed) != sum {
			t.Errorf("header at %d: % x", self, h)
		}
		if le.Uint64(h[24:]) != self || le.Uint64(h[32:]) != other {
			t.Errorf("header at %d says it is at %d, the other at %d", self, le.Uint64(h[24:]), le.Uint64(h[32:]))
		}
		first, end, table := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[72:])
		entries := b[table*512:][:le.Uint32(h[80:])*le.Uint32(h[84:])]
		if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) {
			t.Errorf("the table at %d has another checksum", table)
		}
		if self == 1 && table+32 > first || self != 1 && (table <= end || table+32 != self) {
			t.Errorf("a table at %d, sectors %d to %d for use, header at %d", table, first, end, self)
		}
		for i, p := range d.Parts {
			e := entries[i*128:]
			var name []uint16
			for j := 56; j < 128 && le.Uint16(e[j:]) != 0; j += 2 {
				name = append(name, le.Uint16(e[j:]))
			}
			from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
			if string(utf16.Decode(name)) != p.Name || from != uint64(p.Off/512) || to != uint64((p.Off+p.Size)/512-1) || from < first || to > end {
				t.Errorf("partition %q from %d to %d, want %+v", string(utf16.Decode(name)), from, to, p)
			}
		}
		if strings.Trim(string(entries[len(d.Parts)*128:]), "\x00") != "" {
			t.Error("entries behind the last partition")
		}
	}
}

// TestSgdisk: gdisk reads both tables and finds nothing wrong.
func TestSgdisk(t *testing.T) {
	sgdisk, err := exec.LookPath("sgdisk")
	if err != nil {
		if sgdisk, err = exec.LookPath("/usr/sbin/sgdisk"); err != nil {
			t.Skip("NOT RUN: no sgdisk (Debian's package gdisk)")
		}
	}
	d := example(20 << 20)
	img := file(t, d)
	out, err := exec.Command(sgdisk, "--verify", "--print", img).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") || !strings.Contains(string(out), "Disk identifier (GUID): "+d.ID.String()) {
		t.Errorf("%v\n%s", err, out)
	}
	for i, p := range d.Parts {
		out, err := exec.Command(sgdisk, fmt.Sprintf("--info=%d", i+1), img).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{
			"Partition GUID code: 49F48D5A-B10E-11DC-B99B-0019D1879648 (NetBSD FFS)", "Partition unique GUID: " + p.ID.String(),
			fmt.Sprintf("First sector: %d ", p.Off/512), fmt.Sprintf("Last sector: %d ", (p.Off+p.Size)/512-1), "Partition name: '" + p.Name + "'",
		} {
			if !strings.Contains(string(out), want) {
				t.Errorf("partition %d: no %q in\n%s", i+1, want, out)
			}
		}
	}
}

// TestGUIDs: the same seed, the same GUID, of version 8; other seeds, others.
func TestGUIDs(t *testing.T) {
	a, b := NewGUID([]byte("ab"), []byte("c")), NewGUID([]byte("a"), []byte("bc"))
	if a == b || a != NewGUID([]byte("ab"), []byte("c")) {
		t.Errorf("%v, %v", a, b)
	}
	if s := a.String(); len(s) != 36 || s[14] != '8' || !strings.ContainsRune("89AB", rune(s[19])) {
		t.Errorf("%s is no UUID of version 8", s)
	}
	if s := NetBSDFFS().String(); s != "49F48D5A-B10E-11DC-B99B-0019D1879648" {
		t.Error(s)
	}
}

// TestRefused: what does not fit on the disk is not written.
func TestRefused(t *testing.T) {
	for says, change := range map[string]func(d *Disk){
		"whole sectors":      func(d *Disk) { d.Size++ },
		"on a disk of 20480": func(d *Disk) { d.Size, d.Parts = 40*512, nil },
		"at 512 does not":    func(d *Disk) { d.Parts[0].Off = 512 },
		"of 0 bytes":         func(d *Disk) { d.Parts[0].Size = 0 },
		"at 1048577":         func(d *Disk) { d.Parts[0].Off++ },
		"does not lie":       func(d *Disk) { d.Parts[1].Size += 512 },
		"overlap":            func(d *Disk) { d.Parts[0].Size += 512 },
		"1 to 36":            func(d *Disk) { d.Parts[0].Name = strings.Repeat("x", 37) },
		`name ""`:            func(d *Disk) { d.Parts[0].Name = "" },
		"at most 128":        func(d *Disk) { d.Parts = make([]Partition, 129) },
		"9223372036854775":   func(d *Disk) { d.Parts[1].Size = 1<<63 - 512 },
	} {
		d := example(20 << 20)
		change(&d)
		if err := Write(nil, d); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want it to say %q", err, says)
		}
	}
}
