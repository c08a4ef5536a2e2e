package smaps

import (
	"os"
	"strings"
	"testing"
)

const smapsText = `00400000-00500000 r-xp 00000000 fe:00 1234                               /usr/bin/monitor
Size:               1024 kB
Rss:                 400 kB
Pss:                 200 kB
Private_Clean:         0 kB
Private_Dirty:       400 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00600000-00700000 rw-p 00100000 fe:00 1234                               /usr/bin/monitor
Rss:                 100 kB
Private_Dirty:       100 kB
Anonymous:            60 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Rss:                  50 kB
Private_Dirty:        40 kB
Anonymous:            50 kB
7f1000000000-7f1008000000 rw-s 00000000 00:01 77                         /memfd:smolvmm-ram (deleted)
Rss:               20480 kB
Private_Dirty:     20480 kB
Anonymous:             0 kB
7f2000000000-7f2000003000 rw-s 00000000 00:0f 3                          anon_inode:kvm-vcpu:0
Rss:                  12 kB
Private_Dirty:        12 kB
Anonymous:             0 kB
`

// privateText is smolvmm with private RAM: its first 2 MiB, the rest, and what only looks alike.
const privateText = `7fdde7e00000-7fdde8000000 rw-p 00000000 00:00 0 
Rss:                   8 kB
VmFlags: rd wr mr mw me nr dd 
7fdde8000000-7fddebe00000 rw-p 00000000 00:00 0 
Rss:               16384 kB
VmFlags: rd wr mr mw me nr dd hg 
7fde4c52b000-7fde4c52c000 rw-p 00000000 00:00 0 
Rss:                   4 kB
VmFlags: rd wr mr mw me nr wf dd dp 
7fde4c52e000-7fde4c532000 r--p 00000000 00:00 0                          [vvar]
Rss:                  16 kB
VmFlags: rd mr pf io de dd 
`

func TestSmaps(t *testing.T) {
	ms, err := parse(strings.NewReader(smapsText))
	if err != nil || len(ms) != 5 {
		t.Fatalf("%d mappings, %v", len(ms), err)
	}
	want := Memory{RSS: (400 + 100 + 50 + 12) << 10, PSS: 200 << 10, PrivateDirty: (0 + 60 + 40 + 12) << 10, Guest: 20480 << 10}
	for name, ram := range map[string]func(Mapping) bool{"name": Named("memfd:smolvmm-ram"), "size": Sized(128 << 20)} {
		m, err := sum(ms, ram)
		if err != nil || *m != want {
			t.Errorf("by %s: %+v, %v; want %+v", name, m, err, want)
		}
	}
	if m, err := sum(ms, Smolvmm); err != nil || *m != want {
		t.Errorf("a memfd of smolvmm's: %+v, %v; want %+v", m, err, want)
	}
	ms, err = parse(strings.NewReader(privateText))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := sum(ms, Smolvmm); err != nil || m.Guest != (8+16384)<<10 || m.RSS != (4+16)<<10 {
		t.Errorf("private memory of smolvmm's: %+v, %v", m, err)
	}
	if _, err := sum(ms, Sized(1)); err == nil {
		t.Error("no guest memory, and no error")
	}
	for _, bad := range []string{"Rss: 4 kB\n", "zz-5 r-xp 0 0:0 0\n", "5-4 r-xp 0 0:0 0\n", "4-5 r-xp\n", "4-5 r-xp 0 0:0 0\nRss: 4\n", "4-5 r-xp 0 0:0 0\nRss: -4 kB\n"} {
		if _, err := parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	m, err := Read(os.Getpid(), Named("[heap]"))
	if err == nil {
		t.Logf("this process: %+v", m)
	}
	if m, err = Read(os.Getpid(), Named("[stack]")); err != nil || m.RSS == 0 || m.PrivateDirty == 0 || m.PrivateDirty > m.RSS {
		t.Errorf("this process: %+v, %v", m, err)
	}
}
