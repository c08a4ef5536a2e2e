package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

type entry = archivetest.Entry

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func with(h tar.Header, body string) entry { return entry{Header: h, Body: body} }

func file(name, body string) entry { return with(tar.Header{Name: name, Mode: 0o644}, body) }

func link(name, target string) entry {
	return with(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}, "")
}

func symlink(name, target string) entry {
	return with(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}, "")
}

func store(t testing.TB) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir())
	must(t, err)
	return s
}

func read(b []byte, o Options) (*tree.Tree, error) {
	tr := tree.New()
	return tr, Read(context.Background(), bytes.NewReader(b), tr, o)
}

// system is a small system with everything that a set has.
func system() []byte {
	when := time.Unix(1_700_000_000, 123_456_789)
	return archivetest.Tar(
		with(tar.Header{Name: "./", Mode: 0o755, ModTime: when}, ""),
		with(tar.Header{Name: "./bin/", Mode: 0o755, ModTime: when.Truncate(time.Second)}, ""),
		with(tar.Header{Name: "./bin/sh", Mode: 0o555, Uid: 0, Gid: 7, ModTime: when, Format: tar.FormatPAX, PAXRecords: map[string]string{fflags: "schg,nodump"}}, "#!sh"),
		link("./bin/ksh", "./bin/sh"),
		with(tar.Header{Name: "./bin/su", Mode: 0o4555, Uid: 3, Gid: 3_000_000}, "su"),
		with(tar.Header{Name: "./dev/ld0a", Typeflag: tar.TypeBlock, Mode: 0o640, Gid: 5, Devmajor: 19, Devminor: 0x12345}, ""),
		with(tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 2, Devminor: 2}, ""),
		with(tar.Header{Name: "./dev/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""),
		symlink("./etc/localtime", "/usr/share/zoneinfo/UTC"),
		symlink("./up", "../../.."),
		with(tar.Header{Name: "./" + strings.Repeat("long/", 30) + "name", Mode: 0o600}, strings.Repeat("x", 100_000)),
	)
}

func TestRead(t *testing.T) {
	plain := system()
	z := append(archivetest.Gzip(plain[:1000]), archivetest.Gzip(plain[1000:])...) // members of one file
	want := ""
	for name, b := range map[string][]byte{
		"tar": plain, "gz": archivetest.Gzip(plain), "gz of two": z, "xz": archivetest.XZ(plain), "zst": archivetest.Zstd(plain),
		"zst behind a skippable frame": append([]byte{0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'}, archivetest.Zstd(plain)...),
	} {
		for _, blobs := range []*blob.Store{nil, store(t)} {
			tr := tree.New()
			must(t, Read(t.Context(), iotest.HalfReader(bytes.NewReader(b)), tr, Options{Name: name, Blobs: blobs}))
			d, err := tr.Digest()
			must(t, err)
			if want == "" {
				want = d
			}
			if d != want {
				t.Errorf("%s: another tree", name)
			}
			checkSystem(t, tr)
		}
	}
}

func checkSystem(t *testing.T, tr *tree.Tree) {
	t.Helper()
	sh, err := tr.Lookup("bin/sh")
	must(t, err)
	if ksh, err := tr.Lookup("bin/ksh"); err != nil || ksh != sh {
		t.Errorf("a hard link: %v, %v", ksh, err)
	}
	if b, err := tree.ReadAll(sh.Content, 100); err != nil || string(b) != "#!sh" || sh.Perm != 0o555 || sh.GID != 7 || sh.Flags != 0x20001 || sh.Mtime != 1_700_000_000_123_456_789 {
		t.Errorf("sh: %q %+v, %v", b, sh, err)
	}
	for path, want := range map[string]tree.Node{
		".":             {Kind: tree.Dir, Perm: 0o755, Mtime: 1_700_000_000_000_000_000},
		"bin":           {Kind: tree.Dir, Perm: 0o755, Mtime: 1_700_000_000_000_000_000},
		"dev/ld0a":      {Kind: tree.BlockDevice, Perm: 0o640, GID: 5, Major: 19, Minor: 0x12345},
		"dev/null":      {Kind: tree.CharDevice, Perm: 0o666, Major: 2, Minor: 2},
		"dev/pipe":      {Kind: tree.FIFO, Perm: 0o600},
		"etc/localtime": {Kind: tree.Symlink, Target: "/usr/share/zoneinfo/UTC"},
		"up":            {Kind: tree.Symlink, Target: "../../.."},
	} {
		n, err := tr.Lookup(path)
		must(t, err)
		if n.Kind != want.Kind || n.Perm != want.Perm || n.UID != want.UID || n.GID != want.GID || n.Mtime != want.Mtime ||
			n.Target != want.Target || n.Major != want.Major || n.Minor != want.Minor {
			t.Errorf("%s: %+v", path, n)
		}
	}
	if su, err := tr.Lookup("bin/su"); err != nil || su.Perm != 0o4555 || su.UID != 3 || su.GID != 3_000_000 {
		t.Errorf("su: %+v, %v", su, err)
	}
	n, err := tr.Lookup(strings.Repeat("long/", 30) + "name")
	must(t, err)
	if b, err := tree.ReadAll(n.Content, 1<<20); err != nil || string(b) != strings.Repeat("x", 100_000) {
		t.Errorf("a long file: %d bytes, %v", len(b), err)
	}
}

// realXZ is what `tar --format=ustar -cf - hello | xz -9` made of 4,000 lines
// "hello, world N": LZMA2 with compression, a dictionary of 64 MiB, CRC64.
const realXZ = `/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4T//BI9dADQZSe6N1/i4P8k3Mt7I1YBg9OezBvlC82sq7+qX6jVcEZzzMEJtqySAvTzEvJe6Cj5zFv35MQtdZyIaLsFQ4eVJO+w4zfAoGlAzFg03mEPzkG
vsGQ1UgaSWOtXcch03OeOvHaqCEhFmg26q9FAElgKhABQp66DyGPJL4JoSDIRq9i64YnKUEVU81st4SSpS9VdrzBUJ9J9KhgoPJyppUmHurR2MgC3qyDBvZCIYdfulet1k9YJjxJAYTqJ5NFo8dOe9
mE1/BRJiTDy5AZPHb3afcKT2QIPE6hno3eMcRVCNpGQUopfYYcAcNVMNNxySu570NQw3wy08oMm8j/qJAMnfGgaTSE7EIHQaicUC0i8PjtCjxUWVIRLh4g2ejDaL6a4tQ7c27NS0Lbxurk2HT3lNQq
olNm3OT77Fbc1lkVbvcZXpZptlW9qq4jZabXdoJpglkScTIQUgEMqQvTR55JOaiqXjtV+SBskQZkEN5QW8jRKoOHy3YjUkpCcuhM4S1wmcrLq+j+QJRqWYTgitOJmHh9QsYPiBngsuHihGEuF9w8i8
hlVOvBMvquFjFM8Nl8ASqjO07GM7jcKqZKjhRZEp1oO3N5At1ZHd+C9t6Wmp8ylA9Jqh/6H7QQbfeZweE+ZjC4bMqtd5kVEHHuD5YHQC5VXaEdn6hnTWfbbIQ0pETnDQN6cQh2cw6ypBwrIHRF106p
/R4OEmu7fNiVl7P0iWU7PeCjl6a5pjOgwAoQTsGf2j6XFm/ZkoVNGqOTb8MMFecz08CPRsvwNOzfQHeeHXs/X6FBACXxXlcmuTcMht+655GU19U/ULnavkBAZX4Bv97Dey0ePHAdgFFjXdQOLkqLio
LIf0zliVA4XLrrbi20eg2gU+Tp5eqGW0YLWp8/xwBy08Hgl1JN4f+pPnsJDtEre0R+jZ98HrofybD4pE8dDmpdiundaxRJ8eGLr9/7SOe08OMoAtR2UGCnKGzVK3LUwBmegwjNyyV4UJXoH59QjfpS
UHpm3H522rNfToZrLyBZdSYDHi68fNhabPKtb0OONZM7j74/kCWc498urQMlIn5GN4OqmvWbVFiauwVXCCEgghx8zJquKEqhDHZ/I0l2zL2FirwkQQe8U0fjTumqvtmpDj4+QZoO8qEA2MVOWlg6mD
Qf8zP70ltY7mTSMMDxu5GVhmQr4DvPwUeWClXnvTntnOp6G14Tprt05SeSyGVzj/r+0xlZz27M3LN4xkLwc0H4GORM49xJBUpfuIfF1FKp55K2+VTSgwcJLChsRHHwAESERLoOU9wAiCMi4AtnTFlM
Pd5J7D++o7+k3GNTKaE5+N4ZFltKYdp0uBZj7Kezs3bAx6poa0ygwIH5icXJDKnSL4iN5hlMLcrCRoW0bQfXuxAoZ6vCIh/o6koPnd7lypuEPzfqG+gkg5tLoXgQ1ftejQaKYZ+bMfDSAp7sXYNrog
k76AnNgLIwH42tVNX/CBRxthbv1ev+5h5GpZxEcirWHj63iTCAwYPEWEsjppPnKmApWgzOUNLKkYBJiq3tFXhA6X68mrapguAAAA7xOvrwS36TQAAasJgIAFAH8OhcyxxGf7AgAAAAAEWVo=`

func TestRealXZ(t *testing.T) {
	b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(realXZ, "\n", ""))
	must(t, err)
	tr, err := read(b, Options{})
	must(t, err)
	n, err := tr.Lookup("hello")
	must(t, err)
	got, err := tree.ReadAll(n.Content, 1<<20)
	must(t, err)
	var want strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&want, "hello, world %d\n", i)
	}
	if string(got) != want.String() {
		t.Errorf("%d bytes that are not what was packed", len(got))
	}
	for n := 0; n < len(b); n += 61 { // each takes a dictionary of 64 MiB
		if _, err := read(b[:n], Options{}); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(b), err)
		}
	}
	// A dictionary of 1.5 GiB in the block's header, its checksum right.
	big := archivetest.XZ(system())
	big[16] = 37
	if _, err := read(fixXZ(big), Options{}); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("a huge dictionary: %v", err)
	}
}

// TestRefused has what hostile or broken archives do: an error that names the
// archive, the entry and the reason, in one line.
func TestRefused(t *testing.T) {
	deep := strings.Repeat("d/", 129) + "f"
	for name, c := range map[string]struct {
		tar  []byte
		o    Options
		kind error
		says []string
	}{
		"path up":            {archivetest.Tar(file("a/../../etc/passwd", "x")), Options{}, ErrEntry, []string{`entry "a/../../etc/passwd"`, `".."`}},
		"path up inside":     {archivetest.Tar(file("a/../b", "x")), Options{}, ErrEntry, []string{`".."`}},
		"absolute":           {archivetest.Tar(file("/etc/passwd", "x")), Options{}, ErrEntry, []string{`"/etc/passwd"`, "absolute"}},
		"link up":            {archivetest.Tar(file("a", "x"), link("b", "../../etc/shadow")), Options{}, ErrEntry, []string{`entry "b"`, "hard link's target", `".."`}},
		"link absolute":      {archivetest.Tar(file("a", "x"), link("b", "/a")), Options{}, ErrEntry, []string{"hard link's target is absolute"}},
		"link to none":       {archivetest.Tar(link("b", "a")), Options{}, ErrEntry, []string{"not there"}},
		"link to dir":        {archivetest.Tar(file("a/", ""), link("b", "a")), Options{}, ErrEntry, []string{"directory"}},
		"link through link":  {archivetest.Tar(file("d/f", "x"), symlink("s", "d"), link("b", "s/f")), Options{}, ErrEntry, []string{"not there"}},
		"through symlink":    {archivetest.Tar(symlink("s", "/etc"), file("s/passwd", "x")), Options{}, ErrEntry, []string{`entry "s/passwd"`, "symlink"}},
		"through file":       {archivetest.Tar(file("s", "x"), file("s/passwd", "x")), Options{}, ErrEntry, []string{"no directory"}},
		"twice":              {archivetest.Tar(file("a", "x"), file("./a", "y")), Options{}, ErrEntry, []string{"twice"}},
		"twice, as link":     {archivetest.Tar(file("a", "x"), file("b", "x"), link("a", "b")), Options{}, ErrEntry, []string{"twice"}},
		"dir, then symlink":  {archivetest.Tar(file("a/", ""), symlink("a", "/etc")), Options{}, ErrEntry, []string{"twice"}},
		"symlink, then dir":  {archivetest.Tar(symlink("a", "/etc"), file("a/", ""), file("a/x", "")), Options{}, ErrEntry, []string{"twice"}},
		"made dir, then lnk": {archivetest.Tar(file("a/b", "x"), symlink("a", "/etc")), Options{}, ErrEntry, []string{"place of a directory"}},
		"a root file":        {archivetest.Tar(with(tar.Header{Name: ".", Typeflag: tar.TypeReg}, "x")), Options{}, ErrEntry, []string{"place of a directory"}},
		"a root link":        {archivetest.Tar(symlink(".", "/etc")), Options{}, ErrEntry, []string{"place of a directory"}},
		"long name":          {archivetest.Tar(file(strings.Repeat("n", 256), "x")), Options{}, ErrEntry, []string{"cannot be called"}},
		"long path":          {archivetest.Tar(file(strings.Repeat("nnnnnnnnnnnnnnn/", 64)+"n", "x")), Options{}, ErrLimit, []string{"1023 bytes"}},
		"long target":        {archivetest.Tar(symlink("s", strings.Repeat("n", 1024))), Options{}, ErrEntry, []string{"target"}},
		"empty target":       {archivetest.Tar(symlink("s", "")), Options{}, ErrEntry, []string{"target"}},
		"deep":               {archivetest.Tar(file(deep, "x")), Options{}, ErrLimit, []string{"128 levels"}},
		"device":             {archivetest.Tar(with(tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1}, "")), Options{NoDevices: true}, ErrEntry, []string{`entry "d"`, "character device"}},
		"device number":      {archivetest.Tar(with(tar.Header{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 4096}, "")), Options{}, ErrEntry, []string{"4096,0"}},
		"owner":              {archivetest.Tar(with(tar.Header{Name: "f", Uid: 1 << 32}, "")), Options{}, ErrEntry, []string{"owner 4294967296:0"}},
		"time":               {archivetest.Tar(with(tar.Header{Name: "f", ModTime: time.Unix(1<<40, 0)}, "")), Options{}, ErrEntry, []string{"its time"}},
		"flags":              {archivetest.Tar(with(tar.Header{Name: "f", PAXRecords: map[string]string{fflags: "sunlnk,x"}}, "")), Options{}, ErrEntry, []string{`"sunlnk"`}},
		"global":             {archivetest.Tar(with(tar.Header{Name: "g", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "/etc/passwd"}}, "")), Options{}, ErrEntry, []string{"global"}},
		"type":               {archivetest.Tar(with(tar.Header{Name: "f", Typeflag: 'Z'}, "")), Options{}, ErrEntry, []string{"type"}},
		"entries":            {archivetest.Tar(file("a", ""), file("b", ""), file("c", "")), Options{Limits: Limits{Entries: 2}}, ErrLimit, []string{`entry "c"`, "2 entries"}},
		"bytes":              {archivetest.Tar(file("a", "1234"), file("b", "5678")), Options{Limits: Limits{Bytes: 7}}, ErrLimit, []string{"7 bytes"}},
		"bytes of one":       {archivetest.Tar(file("a", "12345678"))[:512], Options{Limits: Limits{Bytes: 7}}, ErrLimit, []string{"7 bytes"}},
		"unpacked":           {archivetest.Gzip(archivetest.Tar(file("a", ""), file("b", ""))), Options{Limits: Limits{Bytes: 600}}, ErrLimit, []string{"unpacks to more than 600 bytes"}},
		"memory":             {archivetest.Tar(file("a", "12345678")), Options{Limits: Limits{Memory: 7}}, ErrLimit, []string{"in memory"}},
		"names":              {archivetest.Tar(file("aaaa", ""), file("bbbb", "")), Options{Limits: Limits{Names: 7}}, ErrLimit, []string{"names"}},
		"empty":              {nil, Options{}, ErrFormat, []string{"empty"}},
		"a page":             {[]byte("<!DOCTYPE html><html><body>404</body></html>" + strings.Repeat(" ", 1000)), Options{}, ErrFormat, []string{"neither tar", "<!DOCTYPE"}},
		"bzip2":              {[]byte("BZh91AY&SY"), Options{}, ErrFormat, []string{"bzip2 is not read"}},
		"gz of a page":       {archivetest.Gzip([]byte(strings.Repeat("<html>", 1000))), Options{}, ErrCorrupt, []string{"there is no tar archive in it"}},
		"only a magic":       {[]byte{0x1f, 0x8b}, Options{}, ErrCorrupt, []string{"cut short"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, blobs := range []*blob.Store{nil, store(t)} {
				c.o.Name, c.o.Blobs = "sets/base.tar", blobs
				if name == "memory" {
					c.o.Blobs = nil
				}
				_, err := read(c.tar, c.o)
				if !errors.Is(err, c.kind) {
					t.Fatalf("error %v, want %v", err, c.kind)
				}
				for _, s := range append(c.says, "sets/base.tar: ") {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%q does not say %q", err, s)
					}
				}
				if strings.ContainsAny(err.Error(), "\n\x00") || len(err.Error()) > 700 {
					t.Errorf("not one short line: %q", err)
				}
			}
		})
	}
}

// TestCut has each kind of archive end early, at many a byte: no cut looks whole.
func TestCut(t *testing.T) {
	blobs := store(t)
	plain := archivetest.Tar(file("a", "content"), file("zeros", strings.Repeat("\x00", 2048)), file("d/", ""))
	for name, b := range map[string][]byte{"tar": plain, "gz": archivetest.Gzip(plain), "xz": archivetest.XZ(plain), "zst": archivetest.Zstd(plain)} {
		end := len(b)
		if name == "tar" {
			end -= 512 // the second block of the end marker is not missed
		}
		for n := 0; n < end; n += 16 {
			_, err := read(b[:n], Options{Name: name, Blobs: blobs})
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
			}
		}
		if left, err := fs.Glob(osDir(blobs.Dir()), "tmp/*"); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %q, %v", name, left, err)
		}
	}
}

// TestDamaged flips bits: where there is a checksum, none goes unseen.
func TestDamaged(t *testing.T) {
	plain := archivetest.Tar(file("a", strings.Repeat("some content ", 100)))
	want, err := read(plain, Options{})
	must(t, err)
	digest, err := want.Digest()
	must(t, err)
	for name, b := range map[string][]byte{"gz": archivetest.Gzip(plain), "xz": archivetest.XZ(plain), "zst": archivetest.Zstd(plain)} {
		for i := 0; i < len(b); i += 3 {
			c := bytes.Clone(b)
			c[i] ^= 1 << (i % 8)
			tr, err := read(c, Options{})
			if err != nil {
				continue
			}
			if d, err := tr.Digest(); err != nil || d != digest { // gzip's header has bytes that mean nothing
				t.Errorf("%s: a changed byte %d gives another tree: %v", name, i, err)
			}
		}
	}
}

func TestOptions(t *testing.T) {
	b := archivetest.Tar(file("top/", ""), file("top/a", "1"), file("top/d/b", "2"), file("stray", "3"), link("top/c", "top/d/b"),
		with(tar.Header{Name: "top/dev", Typeflag: tar.TypeFifo, Uid: 5, Gid: 6}, ""))
	paths := func(tr *tree.Tree) (got []string) {
		must(t, tr.Walk(func(path string, _ *tree.Node) error { got = append(got, path); return nil }))
		return got
	}
	tr, err := read(b, Options{Strip: 1})
	must(t, err)
	if got, want := paths(tr), []string{".", "a", "c", "d", "d/b", "dev"}; !slices.Equal(got, want) {
		t.Errorf("stripped: %q", got)
	}
	// The link is taken, what it links to is not: its content is there.
	tr, err = read(b, Options{Strip: 1, Owners: AllRoot, Filter: func(path string, _ *tree.Node) bool { return path == "c" || path == "dev" }})
	must(t, err)
	if got, want := paths(tr), []string{".", "c", "dev"}; !slices.Equal(got, want) {
		t.Errorf("filtered: %q", got)
	}
	n, err := tr.Lookup("c")
	must(t, err)
	if b, err := tree.ReadAll(n.Content, 10); err != nil || string(b) != "2" {
		t.Errorf("the link's content: %q, %v", b, err)
	}
	if n, _ := tr.Lookup("dev"); n.UID != 0 || n.GID != 0 {
		t.Errorf("AllRoot: %+v", n)
	}
}

func TestOwnersByName(t *testing.T) {
	b := archivetest.Tar(
		file("etc/master.passwd", "root:*:0:0::0:0::/root:/bin/sh\nwww:*:24:25::0:0::/:/x\n"),
		file("etc/group", "wheel:*:0:\nwww:*:25:\n"),
		with(tar.Header{Name: "d/", Uname: "www", Gname: "www", Uid: 1, Gid: 1}, ""),
		with(tar.Header{Name: "f", Uname: "www", Gname: "nobody", Uid: 1, Gid: 1}, ""),
		with(tar.Header{Name: "g", Uid: 1, Gid: 1}, ""),
	)
	tr := tree.New()
	must(t, tr.Put("d/old", tree.NewFile(0o644, nil))) // d is joined
	must(t, Read(t.Context(), bytes.NewReader(b), tr, Options{Owners: ByName}))
	for path, want := range map[string][2]uint32{"d": {24, 25}, "f": {24, 1}, "g": {1, 1}, "d/old": {0, 0}} {
		if n, err := tr.Lookup(path); err != nil || [2]uint32{n.UID, n.GID} != want {
			t.Errorf("%s: %+v, %v", path, n, err)
		}
	}
}

// TestOverlay: an archive is laid over what is there.
func TestOverlay(t *testing.T) {
	tr := tree.New()
	old := tree.NewFile(0o644, tree.Bytes("old"))
	must(t, tr.Put("etc/rc", old))
	must(t, tr.Put("etc/hosts", tree.NewFile(0o644, tree.Bytes("kept"))))
	must(t, tr.Put("var", tree.NewSymlink("/mnt")))
	b := archivetest.Tar(with(tar.Header{Name: "etc/", Mode: 0o700}, ""), file("etc/rc", "new"), link("etc/hosts2", "etc/hosts"))
	must(t, Read(t.Context(), bytes.NewReader(b), tr, Options{}))
	rc, _ := tr.Lookup("etc/rc")
	hosts, _ := tr.Lookup("etc/hosts")
	hosts2, _ := tr.Lookup("etc/hosts2")
	etc, _ := tr.Lookup("etc")
	if rc.Size() != 3 || rc == old || hosts != hosts2 || etc.Perm != 0o700 {
		t.Errorf("%+v %+v %+v %+v", rc, hosts, hosts2, etc)
	}
	for _, e := range []entry{file("var/log", "x"), file("etc", "x"), file("etc/rc/", ""), symlink("etc", "/tmp")} {
		if err := Read(t.Context(), bytes.NewReader(archivetest.Tar(e)), tr, Options{}); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", e.Name, err)
		}
	}
}

// TestSparse: GNU's and PAX's sparse files come with their holes, and zeros of
// plain ones become holes.
func TestSparse(t *testing.T) {
	for name, b := range map[string][]byte{"old GNU": oldGNUSparse(16 << 20), "PAX 1.0": paxSparse(16 << 20), "zeros": archivetest.Tar(file("sparse", strings.Repeat("\x00", 16<<20-4)+"data"))} {
		tr := tree.New()
		must(t, Read(t.Context(), bytes.NewReader(b), tr, Options{Blobs: store(t)}))
		n, err := tr.Lookup("sparse")
		must(t, err)
		runs, err := tree.Extents(n.Content)
		must(t, err)
		if n.Size() != 16<<20 || len(runs) != 1 || runs[0].Len > 1<<20 {
			t.Errorf("%s: %d bytes, in %v", name, n.Size(), runs)
		}
		c, err := n.Content.Open()
		must(t, err)
		got := make([]byte, 8)
		if _, err := c.ReadAt(got, 16<<20-8); err != nil || string(got) != "\x00\x00\x00\x00data" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		must(t, c.Close())
	}
	if _, err := read(oldGNUSparse(1<<40), Options{Blobs: store(t)}); !errors.Is(err, ErrLimit) {
		t.Errorf("a sparse file of a terabyte: %v", err)
	}
}

// TestBomb has a gigabyte of zeros in a small file.
func TestBomb(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	must(t, err)
	h := archivetest.Tar(with(tar.Header{Name: "zeros", Size: 0}, ""))[:512]
	setSize(h, 1100<<20)
	z.Write(h)
	zeros := make([]byte, 1<<20)
	for range 1100 {
		z.Write(zeros)
	}
	must(t, z.Close())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	blobs := store(t)
	_, err = read(b.Bytes(), Options{Name: "bomb.tar.zst", Blobs: blobs})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "500 times its size") || !strings.Contains(err.Error(), `bomb.tar.zst: entry "zeros"`) {
		t.Errorf("a bomb of %d bytes: %v", b.Len(), err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("it took %d MiB", grown>>20)
	}
	if all, err := blobs.List(); err != nil || len(all) > 0 {
		t.Errorf("left in the store: %v, %v", all, err)
	}
}

func TestWindow(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(1<<28), zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(false))
	must(t, err)
	z.Write(archivetest.Tar(file("a", strings.Repeat("x", 1000))))
	must(t, z.Flush()) // so that the frame is written without its size
	must(t, z.Close())
	if _, err := read(b.Bytes(), Options{}); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "128 MiB") {
		t.Errorf("a window of 256 MiB: %v", err)
	}
}

// TestSourceFails: an error of whoever gives the bytes is not the archive's, and
// nothing is read after Read has returned.
func TestSourceFails(t *testing.T) {
	broken := errors.New("disk on fire")
	for _, b := range [][]byte{system(), archivetest.Gzip(system()), archivetest.XZ(system()), archivetest.Zstd(system())} {
		r := &counting{r: io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(broken))}
		err := Read(t.Context(), r, tree.New(), Options{Name: "x.tar"})
		if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
			t.Errorf("error %v", err)
		}
		r.over = true
		ctx, cancel := context.WithCancel(t.Context())
		r = &counting{r: bytes.NewReader(b), then: cancel}
		if err := Read(ctx, r, tree.New(), Options{}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrCorrupt) {
			t.Errorf("cancelled: %v", err)
		}
		r.over = true
	}
}

// counting sees to it that nobody reads when all is over; the race detector too.
type counting struct {
	r    io.Reader
	then func()
	over bool
}

func (c *counting) Read(p []byte) (int, error) {
	if c.over {
		panic("read after the end")
	}
	if c.then != nil {
		c.then()
	}
	return c.r.Read(p[:min(len(p), 512)])
}

func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 10 {
		for _, b := range [][]byte{archivetest.Gzip(system()), archivetest.Zstd(system()), archivetest.Gzip(archivetest.Tar(file("../x", strings.Repeat("x", 1<<20))))} {
			read(b, Options{})
		}
	}
	for range 100 { // what has returned may still be ending
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
