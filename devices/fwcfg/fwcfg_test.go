package fwcfg

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func item(t testing.TB, name, value string) Item {
	t.Helper()
	it, err := NewItem(name, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func device(t testing.TB, items ...Item) *Device {
	t.Helper()
	d, err := New(items)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func sel(d *Device, key uint16) { d.Write(portSelector, binary.LittleEndian.AppendUint16(nil, key)) }

// get reads n bytes one at a time.
func get(d *Device, n int) string {
	out := make([]byte, n)
	for i := range out {
		d.Read(portData, out[i:i+1])
	}
	return string(out)
}

// TestItems reads every kind of item as a guest does.
func TestItems(t *testing.T) {
	d := device(t, item(t, "opt/b", "second"), item(t, "opt/a", "first"), item(t, "opt/B", "upper sorts first"), item(t, "opt/empty", ""))
	dir := "\x00\x00\x00\x04"
	for i, e := range []struct {
		name string
		size int
	}{{"opt/B", 17}, {"opt/a", 5}, {"opt/b", 6}, {"opt/empty", 0}} {
		dir += fmt.Sprintf("\x00\x00\x00%c\x00%c\x00\x00%s%s", e.size, 0x20+i, e.name, strings.Repeat("\x00", 56-len(e.name)))
	}
	for _, c := range []struct {
		what string
		key  uint16
		want string
	}{
		{"signature", 0x0000, "QEMU\x00\x00"},
		{"features: traditional only", 0x0001, "\x01\x00\x00\x00\x00"},
		{"unknown below the files", 0x0002, "\x00\x00"},
		{"directory", 0x0019, dir + "\x00"},
		{"file", 0x0020, "upper sorts first\x00"},
		{"file", 0x0021, "first\x00\x00"},
		{"file", 0x0022, "second\x00"},
		{"empty file", 0x0023, "\x00\x00"},
		{"past the files", 0x0024, "\x00\x00"},
		{"last generic key", 0x3FFF, "\x00"},
		{"write mode, bit 14: the same item", 0x4021, "first\x00"},
		{"write mode of the signature", 0x4000, "QEMU\x00"},
		{"architecture, bit 15: none", 0x8000, "\x00\x00\x00\x00"},
		{"architecture: none", 0x8021, "\x00\x00"},
		{"both bits", 0xC021, "\x00"},
		{"last key", 0xFFFF, "\x00"},
	} {
		sel(d, c.key)
		if got := get(d, len(c.want)); got != c.want {
			t.Errorf("%s, key %#04x: %q, want %q", c.what, c.key, got, c.want)
		}
		sel(d, c.key)
		many := bytes.Repeat([]byte{0xEE}, len(c.want))
		d.ReadMany(portData, many)
		if string(many) != c.want {
			t.Errorf("%s, key %#04x in one string: %q, want %q", c.what, c.key, many, c.want)
		}
	}
}

// TestPorts covers each port, direction and width.
func TestPorts(t *testing.T) {
	d := device(t, item(t, "opt/a", "abcdef"))
	if got := get(d, 4); got != "QEMU" {
		t.Errorf("before any selection: %q", got)
	}
	sel(d, 0x20)
	if get(d, 2) != "ab" {
		t.Error("no data")
	}
	for _, w := range []struct {
		off uint64
		p   []byte
	}{{portData, []byte{1}}, {portData, []byte{1, 2}}, {portSelector, []byte{0}}, {portSelector, []byte{0, 0, 0, 0}}, {2, []byte{0, 0}}, {^uint64(0), []byte{0, 0}}} {
		d.Write(w.off, w.p) // ignored
	}
	for _, r := range []struct {
		off uint64
		n   int
	}{{portSelector, 1}, {portSelector, 2}, {portSelector, 4}, {portData, 2}, {2, 1}, {^uint64(0), 1}} {
		p := bytes.Repeat([]byte{0xFF}, r.n)
		d.Read(r.off, p)
		if !bytes.Equal(p, bytes.Repeat([]byte{0xFF}, r.n)) {
			t.Errorf("a read of %d at %d gives % x", r.n, r.off, p)
		}
	}
	d.ReadMany(portSelector, make([]byte, 8))
	if got := get(d, 4); got != "cdef" {
		t.Errorf("it goes on with %q", got)
	}
	sel(d, 0x20)
	if got := get(d, 1); got != "a" {
		t.Errorf("selecting again starts with %q", got)
	}
}

func TestNames(t *testing.T) {
	long := "opt/" + strings.Repeat("x", MaxName-4)
	for name, ok := range map[string]bool{
		"opt/a": true, "opt/org.smolbsd.var.PATH": true, long: true, "opt/a/b-c_d~": true,
		"": false, "opt/": false, "opt": false, "etc/a": false, "a": false, long + "x": false,
		"opt/a b": false, "opt/a\x00": false, "opt/\x7f": false, "opt/ü": false, "opt/a\n": false,
	} {
		_, err := NewItem(name, nil)
		if (err == nil) != ok {
			t.Errorf("NewItem(%q): %v", name, err)
		}
		_, err = ReadItem(name, strings.NewReader(""))
		if (err == nil) != ok {
			t.Errorf("ReadItem(%q): %v", name, err)
		}
	}
	d := device(t, item(t, long, "x"))
	sel(d, keyFileDir)
	if b := get(d, 4+dirEntry); b[12:12+MaxName] != long || b[4+dirEntry-1] != 0 {
		t.Errorf("the longest name is not ended by a NUL: %q", b)
	}
}

func TestBounds(t *testing.T) {
	if _, err := NewItem("opt/a", make([]byte, MaxItem+1)); err == nil {
		t.Error("NewItem took too much")
	}
	if it, err := NewItem("opt/a", make([]byte, MaxItem)); err != nil || it.Len() != MaxItem {
		t.Error(err)
	}
	if _, err := ReadItem("opt/a", neverEnding{}); err == nil {
		t.Error("ReadItem took too much")
	}
	if it, err := ReadItem("opt/a", io.LimitReader(neverEnding{}, MaxItem)); err != nil || it.Len() != MaxItem {
		t.Error(err)
	}
	big := make([]Item, 5)
	for i := range big {
		big[i] = Item{fmt.Sprintf("opt/%d", i), hide(make([]byte, MaxItem))}
	}
	if _, err := New(big); err == nil {
		t.Error("more than 64 MiB in all")
	}
	if _, err := New(big[:4]); err != nil {
		t.Error(err)
	}
	many := make([]Item, MaxItems+1)
	for i := range many {
		many[i] = item(t, fmt.Sprintf("opt/%d", i), "")
	}
	if _, err := New(many); err == nil {
		t.Error("too many")
	}
	if _, err := New(many[1:]); err != nil {
		t.Error(err)
	}
	if _, err := New([]Item{many[0], many[1], many[0]}); err == nil {
		t.Error("two of a name")
	}
	if _, err := New([]Item{{}}); err == nil {
		t.Error("an item that is none")
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestReadItem(t *testing.T) {
	text := strings.Repeat("0123456789", 3000)
	for _, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text)), iotest.DataErrReader(strings.NewReader(text))} {
		it, err := ReadItem("opt/a", r)
		if err != nil || string(it.value.bytes()) != text {
			t.Errorf("%d bytes, %v", it.Len(), err)
		}
	}
	cut := errors.New("cut")
	if _, err := ReadItem("opt/a", iotest.ErrReader(cut)); !errors.Is(err, cut) {
		t.Errorf("%v", err)
	}
}

// TestSecretsAreNotShown tries every way a value slips into a log.
func TestSecretsAreNotShown(t *testing.T) {
	const hidden = "hunter2"
	it := item(t, "opt/password", hidden)
	d := device(t, it)
	sel(d, keyFileFirst)
	get(d, 1)
	holder := struct {
		device *Device
		Public Item
		hidden Item
		list   []Item
		byName map[string]*Item
	}{d, it, it, []Item{it}, map[string]*Item{"x": &it}}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "item", it, "device", d, "holder", holder, "items", []Item{it})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "item", it, "holder", holder, "items", []Item{it})
	for _, v := range []any{it, &it, holder, &holder, []Item{it}, d, errors.New(it.String())} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%X"} {
			fmt.Fprintf(&log, verb, v)
		}
		b, _ := json.Marshal(v)
		log.Write(b)
	}
	state, err := d.State()
	if err != nil {
		t.Fatal(err)
	}
	log.Write(state)
	low := strings.ToLower(log.String())
	for _, form := range []string{hidden, fmt.Sprintf("%x", hidden), "aHVudGVyMg", fmt.Sprint([]byte(hidden)), "0x68, 0x75"} {
		if strings.Contains(low, strings.ToLower(form)) {
			t.Errorf("shown as %q", form)
		}
	}
	if !strings.Contains(log.String(), "opt/password (7 bytes, not shown)") {
		t.Error("and neither is its name")
	}
}

func TestCloseWipes(t *testing.T) {
	it := item(t, "opt/password", "hunter2")
	d := device(t, it)
	b, own := d.items[0].value.bytes(), it.value.bytes()
	sel(d, keyFileFirst)
	get(d, 3)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, make([]byte, 7)) {
		t.Errorf("memory holds %q", b)
	}
	if got := get(d, 4); got != "\x00\x00\x00\x00" {
		t.Errorf("a closed device gives %q", got)
	}
	sel(d, keySignature)
	if got := get(d, 4); got != "\x00\x00\x00\x00" {
		t.Errorf("a closed device gives %q", got)
	}
	// The next machine gets the same items; then the caller wipes its own.
	d = device(t, it)
	it.Wipe()
	if sel(d, keyFileFirst); get(d, 7) != "hunter2" {
		t.Error("a second device misses the value")
	}
	if !bytes.Equal(own, make([]byte, 7)) || it.Len() != 0 {
		t.Errorf("memory holds %q", own)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	var zero Item
	zero.Wipe()
	if zero.Len() != 0 || zero.Name() != "" {
		t.Error("the zero Item")
	}
}

func TestState(t *testing.T) {
	a, b := item(t, "opt/a", "aaaaaa"), item(t, "opt/b", "bbbbbb")
	old := device(t, a, b)
	for _, c := range []struct {
		what  string
		key   uint16
		items []Item
		want  string
	}{
		{"the same items", 0x21, []Item{a, b}, "bbbb\x00"},
		{"in write mode", 0x4021, []Item{a, b}, "bbbb\x00"},
		{"the key is another file", 0x20, []Item{b}, "\x00\x00\x00\x00\x00"},
		{"the key is no file", 0x21, []Item{a}, "\x00\x00\x00\x00\x00"},
		{"the file is shorter", 0x20, []Item{item(t, "opt/a", "x")}, "\x00\x00\x00\x00\x00"},
		{"no file was selected, now one would be", 0x22, []Item{a, b, item(t, "opt/c", "cccccc")}, "\x00\x00\x00\x00\x00"},
		{"signature", 0x00, nil, "MU\x00\x00\x00"},
		{"nothing", 0xFFFF, nil, "\x00\x00\x00\x00\x00"},
	} {
		sel(old, c.key)
		get(old, 2)
		state, err := old.State()
		if err != nil {
			t.Fatal(err)
		}
		d := device(t, c.items...)
		if err := d.Restore(state); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if reflect.DeepEqual(c.items, []Item{a, b}) {
			if again, _ := d.State(); !bytes.Equal(state, again) {
				t.Errorf("%s: %s comes back as %s", c.what, state, again)
			}
		}
		if got := get(d, 5); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	for _, bad := range []string{"", "[]", "{}{}", `{"Selector":65536}`, `{"Offset":-1}`, `{"Offset":16777217}`, `{"Name":"etc/x"}`, `{"Value":"x"}`} {
		if err := old.Restore([]byte(bad)); err == nil || !strings.HasPrefix(err.Error(), "fw_cfg: bad state: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if old.Quiesce() != nil || old.Resume() != nil {
		t.Error("cannot pause")
	}
}

// FuzzPorts runs port operations, three bytes each, beside a model of the
// specification that knows nothing of the device's insides.
func FuzzPorts(f *testing.F) {
	// op, then two bytes: 0 selects, 1 reads as many bytes, 2 reads a string,
	// 3 writes data, 4 goes through the state, 5 reads wide.
	f.Add([]byte("\x00\x00\x00\x01\x04\x00\x00\x01\x00\x01\x04\x00\x00\x19\x00\x02\x04\x00\x02\xC0\x00\x00\x20\x00\x02\x20\x00\x01\x05\x00"))
	f.Add([]byte("\x00\x21\x40\x01\x03\x00\x04\x00\x00\x01\x20\x00\x03\x01\x00\x00\x22\x80\x02\x10\x01\x05\x02\x00\x00\xFF\xFF\x01\x01\x00"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		items := []Item{item(t, "opt/one", "the first item"), item(t, "opt/two", strings.Repeat("2", 300)), item(t, "opt/zero", "")}
		model := map[uint16]string{0: "QEMU", 1: "\x01\x00\x00\x00", 0x20: "the first item", 0x21: strings.Repeat("2", 300)}
		d := device(t, items...)
		sel(d, keyFileDir)
		model[keyFileDir] = get(d, 4+3*dirEntry)
		sel(d, 0)
		at := strings.Builder{} // what the rest of the selected item is
		at.WriteString(model[0])
		rest := at.String()
		take := func(n int) string {
			m := min(n, len(rest))
			s := rest[:m] + strings.Repeat("\x00", n-m)
			rest = rest[m:]
			return s
		}
		for ; len(ops) >= 3; ops = ops[3:] {
			v := binary.LittleEndian.Uint16(ops[1:])
			switch ops[0] % 6 {
			case 0:
				sel(d, v)
				rest = ""
				if v&0x8000 == 0 {
					rest = model[v&^0x4000]
				}
			case 1:
				if got, want := get(d, int(v%512)), take(int(v%512)); got != want {
					t.Fatalf("read %q, want %q", got, want)
				}
			case 2:
				p := make([]byte, v%1024)
				d.ReadMany(portData, p)
				if want := take(len(p)); string(p) != want {
					t.Fatalf("read %q, want %q", p, want)
				}
			case 3:
				d.Write(portData, ops[1:2])
				d.Write(portData, ops[1:3])
				d.Write(portSelector, ops[1:2])
			case 4:
				state, err := d.State()
				if err != nil {
					t.Fatal(err)
				}
				d = device(t, items...)
				if err := d.Restore(state); err != nil {
					t.Fatalf("%s: %v", state, err)
				}
			case 5:
				p := []byte{0xFF, 0xFF, 0xFF, 0xFF}
				d.Read(portSelector, p[:1+v%4])
				d.Read(portData, p[:2+v%3])
				if !bytes.Equal(p, []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
					t.Fatalf("a wide read gives % x", p)
				}
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"Selector":32,"Name":"opt/a","Offset":2}`))
	f.Add([]byte(`{"Selector":65535}`))
	f.Fuzz(func(t *testing.T, state []byte) {
		d := device(t, item(t, "opt/a", "aaaa"))
		if d.Restore(state) == nil {
			get(d, 8)
		}
	})
}

// BenchmarkString reads a 64 KiB item as REP INSB does.
func BenchmarkString(b *testing.B) {
	d := device(b, item(b, "opt/a", strings.Repeat("x", 64<<10)))
	p := make([]byte, 4096)
	b.SetBytes(64 << 10)
	for b.Loop() {
		sel(d, keyFileFirst)
		for range 16 {
			d.ReadMany(portData, p)
		}
	}
}
