package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// fakePorts is a fw_cfg device of the test's own (fw_cfg.rst).
type fakePorts struct {
	blobs   map[uint16][]byte
	current []byte
	written []string
	read    int
}

func (f *fakePorts) out8(port uint16, v uint8) {
	f.written = append(f.written, fmt.Sprintf("%#x=%d", port, v))
}

func (f *fakePorts) out16(port uint16, v uint16) {
	if port == fwcfgSelector {
		f.current = f.blobs[v]
	}
}

func (f *fakePorts) in8(port uint16, p []byte) {
	f.read += len(p)
	if port != fwcfgData {
		return
	}
	n := copy(p, f.current)
	f.current = f.current[n:]
	clear(p[n:]) // the device gives zeroes behind the end
}

type file struct{ name, value string }

func fakeDevice(files ...file) *fakePorts {
	f := &fakePorts{blobs: map[uint16][]byte{keySignature: []byte("QEMU")}}
	dir := binary.BigEndian.AppendUint32(nil, uint32(len(files)))
	for i, file := range files {
		key := uint16(0x20 + i)
		f.blobs[key] = []byte(file.value)
		dir = binary.BigEndian.AppendUint32(dir, uint32(len(file.value)))
		dir = binary.BigEndian.AppendUint16(dir, key)
		dir = append(dir, 0, 0)
		name := make([]byte, 56)
		copy(name, file.name)
		dir = append(dir, name...)
	}
	f.blobs[keyFileDir] = dir
	return f
}

func TestReadItems(t *testing.T) {
	it, err := readItems(fakeDevice(
		file{"bootorder", "x"},
		file{"opt/org.other/thing", "y"},
		file{"opt/smolvmm/env/GREETING", "hello world"},
		file{"opt/smolvmm/env/EMPTY", ""},
		file{"opt/smolvmm/file/app.conf", "a=b\n"},
		file{"opt/smolvmm/init.json", `{"argv": ["x"]}`},
		file{"opt/smolvmm/later", "?"},
		file{"opt/smolvmm/secret/token", "s\x00cret"},
	))
	if err != nil {
		t.Fatal(err)
	}
	if string(it.config) != `{"argv": ["x"]}` || it.env["GREETING"] != "hello world" || string(it.files["app.conf"]) != "a=b\n" ||
		string(it.secrets["token"]) != "s\x00cret" {
		t.Errorf("%+v", it)
	}
	if v, ok := it.env["EMPTY"]; !ok || v != "" {
		t.Error("an empty variable is lost")
	}
	if len(it.notes) != 1 || !strings.Contains(it.notes[0], "opt/smolvmm/later") {
		t.Errorf("notes %q", it.notes)
	}
}

func TestReadItemsErrors(t *testing.T) {
	if _, err := readItems(&fakePorts{}); !errors.Is(err, errNoChannel) {
		t.Errorf("no device: %v", err)
	}
	for _, name := range []string{
		"env/", "env/A-B", "file/", "file/../x", "file/a/b", "secret/.x", "secret/",
	} {
		if _, err := readItems(fakeDevice(file{"opt/smolvmm/" + name, "x"})); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := readItems(fakeDevice(file{"opt/smolvmm/env/A", "x\x00"})); err == nil {
		t.Error("a variable with a NUL was taken")
	}

	many := fakeDevice()
	many.blobs[keyFileDir] = []byte{0xff, 0xff, 0xff, 0xff}
	if _, err := readItems(many); err == nil || many.read > 64 {
		t.Errorf("a directory of 2^32-1 files: %v after %d bytes", err, many.read)
	}
	short := fakeDevice(file{"opt/smolvmm/env/A", "1"}, file{"x", ""})
	short.blobs[keyFileDir] = short.blobs[keyFileDir][:4+dirEntry]
	if _, err := readItems(short); err == nil {
		t.Error("a directory that ends early was taken")
	}
	huge := fakeDevice(file{"opt/smolvmm/file/x", "x"})
	binary.BigEndian.PutUint32(huge.blobs[keyFileDir][4:], 0xffffffff)
	if _, err := readItems(huge); err == nil || huge.read > 1024 {
		t.Errorf("a file of 4 GiB: %v after %d bytes", err, huge.read)
	}
	var sum []file
	for i := range 5 {
		sum = append(sum, file{fmt.Sprintf("opt/smolvmm/file/%d", i), "x"})
	}
	total := fakeDevice(sum...)
	for i := range sum {
		binary.BigEndian.PutUint32(total.blobs[keyFileDir][4+dirEntry*i:], maxItem)
	}
	if _, err := readItems(total); err == nil {
		t.Error("80 MiB in all were taken")
	}
}

// FuzzReadItems gives the reader a device whose directory is anything.
func FuzzReadItems(f *testing.F) {
	good := fakeDevice(file{"opt/smolvmm/env/A", "1"}, file{"opt/smolvmm/file/f", "two"}, file{"opt/smolvmm/secret/s", "three"},
		file{"opt/smolvmm/init.json", full})
	f.Add(good.blobs[keyFileDir], []byte("value"))
	f.Add([]byte{0, 0, 0, 1}, []byte{})
	f.Fuzz(func(t *testing.T, dir, value []byte) {
		p := &fakePorts{blobs: map[uint16][]byte{keySignature: []byte("QEMU"), keyFileDir: dir}}
		for key := range uint16(64) {
			if key >= 0x20 {
				p.blobs[key] = value
			}
		}
		// Sizes within the bound are believed: keep the run quick.
		for d := dir; len(d) >= 4+dirEntry; d = d[dirEntry:] {
			if size := binary.BigEndian.Uint32(d[4:]); size > 1<<16 && size <= maxItem {
				return
			}
		}
		it, err := readItems(p)
		if err != nil {
			return
		}
		for name, v := range it.env {
			if checkVariable(name, v) != nil {
				t.Fatalf("variable %q=%q", name, v)
			}
		}
		for _, m := range []map[string][]byte{it.files, it.secrets} {
			for name := range m {
				if strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") || name == "" {
					t.Fatalf("file name %q", name)
				}
			}
		}
	})
}
