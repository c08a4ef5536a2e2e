// Package ffstest reads UFS2 file systems for tests and checks all their tables.
// It is written from the structures of NetBSD's fs.h, dinode.h and dir.h and from
// what fsck_ffs(8) says it checks, and shares nothing with package ffs. A test's
// guest may have changed the disk at will.
package ffstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"reflect"
)

// Disk is a file system that is being read.
type Disk struct {
	Super Super
	r     io.ReaderAt
	fresh bool // nobody has had it since it was made
}

func (d *Disk) bytes(addr int64, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := d.r.ReadAt(b, addr*int64(d.Super.Fsize))
	return b, err
}

func decode(b []byte, v any) error { return binary.Read(bytes.NewReader(b), binary.LittleEndian, v) }

// Open reads the superblock and holds it to what the kernel's
// ffs_superblock_validate and fsck's setup demand. A fresh file system is one that
// no kernel has had: then more is known of it.
func Open(r io.ReaderAt, fresh bool) (*Disk, error) {
	d := &Disk{r: r, fresh: fresh}
	b := make([]byte, 8192)
	s := &d.Super
	for _, at := range []int64{65536, 8192} { // some makefs have it in UFS1's place
		if _, err := r.ReadAt(b, at); err != nil {
			return nil, err
		}
		if err := decode(b, s); err != nil {
			return nil, err
		}
		if s.Magic == 0x19540119 && s.Sblockloc == at {
			break
		}
	}
	if s.Magic != 0x19540119 || fresh && s.Sblockloc != 65536 {
		return nil, fmt.Errorf("magic %#x at %d", s.Magic, s.Sblockloc)
	}
	maxfile, per := uint64(s.Bsize)*12-1, uint64(s.Bsize)
	for range 3 {
		per *= uint64(s.Nindir)
		maxfile += per
	}
	log := func(n int32) int32 { return int32(bits.Len32(uint32(n))) - 1 }
	power := func(n int32) bool { return n > 0 && n&(n-1) == 0 }
	for what, ok := range map[string]bool{
		"sbsize":        s.Sbsize >= 1376 && s.Sbsize <= 8192,
		"bsize":         power(s.Bsize) && s.Bsize >= 4096 && s.Bsize <= 65536,
		"fsize":         power(s.Fsize) && s.Fsize >= 512 && s.Fsize <= s.Bsize,
		"not zero":      s.Size > 0 && s.Cssize > 0 && s.Ipg > 0 && s.Fpg > 0 && s.Ncg > 0 && s.Maxbpg > 0,
		"inopb":         s.Inopb == uint32(s.Bsize/256) && s.Nindir == uint32(s.Bsize/8),
		"shifts":        s.Bshift == log(s.Bsize) && s.Fshift == log(s.Fsize) && s.Fragshift == log(s.Frag) && s.Fsbtodb == log(s.Fsize/512),
		"masks":         s.Bmask == ^(s.Bsize-1) && s.Fmask == ^(s.Fsize-1) && s.Qbmask == int64(s.Bsize-1) && s.Qfmask == int64(s.Fsize-1),
		"frag":          s.Frag == s.Bsize/s.Fsize && s.Frag <= 8,
		"cgsize":        s.Cgsize >= 176 && s.Cgsize <= s.Bsize,
		"clean":         s.Clean == 1 && (!fresh || s.Fmod == 0 && s.Ronly == 0),
		"flags":         s.Flags == 0 && s.OldFlags == 0x80,
		"optim":         s.Optim == 0 || s.Optim == 1,
		"minfree":       s.Minfree >= 0 && s.Minfree <= 99 && (s.Minfree >= 5 || s.Optim == 1),
		"maxfilesize":   s.Maxfilesize == maxfile,
		"maxsymlinklen": s.Maxsymlinklen == 120,
		"inodefmt":      s.OldInodefmt == 2,
		"pending":       s.Pendingblocks == 0 && s.Pendinginodes == 0 && s.Snapinum == [20]int32{},
		"cssize":        s.Cssize == (s.Ncg*16+s.Fsize-1)/s.Fsize*s.Fsize && s.Csaddr == int64(s.Dblkno),
		"order":         s.Sblkno >= (int32(s.Sblockloc)+8192)/s.Fsize && s.Cblkno >= s.Sblkno+8192/s.Fsize && s.Iblkno == s.Cblkno+s.Frag && s.Dblkno == s.Iblkno+s.Ipg/int32(s.Inopb)*s.Frag,
		"blocks":        s.Sblkno%s.Frag == 0 && s.Cblkno%s.Frag == 0 && s.Fpg%s.Frag == 0 && s.Fpg%8 == 0 && s.Ipg%int32(s.Inopb) == 0,
		"groups":        s.Size > int64(s.Ncg-1)*int64(s.Fpg)+int64(s.Dblkno) && s.Size <= int64(s.Ncg)*int64(s.Fpg),
		"dsize":         s.Dsize == s.Size-int64(s.Sblkno)-int64(s.Ncg)*int64(s.Dblkno-s.Sblkno)-int64(s.Cssize/s.Fsize),
		"clusters":      s.Contigsumsize == min(s.Maxcontig, 16) && s.Maxcontig >= 2,
	} {
		if !ok {
			return nil, fmt.Errorf("superblock: %s: %+v", what, *s)
		}
	}
	if _, err := d.bytes(s.Size-1, int(s.Fsize)); err != nil {
		return nil, fmt.Errorf("the last of %d fragments is not there: %w", s.Size, err)
	}
	for g := range int64(s.Ncg) {
		if !fresh {
			break // the kernel does not keep the copies up to date
		}
		copied, err := d.bytes(g*int64(s.Fpg)+int64(s.Sblkno), 8192)
		if err != nil || !bytes.Equal(copied, b) {
			return nil, fmt.Errorf("the superblock's copy in group %d differs (%v)", g, err)
		}
	}
	return d, nil
}

// Inode reads an inode.
func (d *Disk) Inode(ino uint32) (*Inode, error) {
	s := &d.Super
	group, n := int64(ino)/int64(s.Ipg), int64(ino)%int64(s.Ipg)
	b := make([]byte, 256)
	if _, err := d.r.ReadAt(b, (group*int64(s.Fpg)+int64(s.Iblkno))*int64(s.Fsize)+n*256); err != nil {
		return nil, err
	}
	i := new(Inode)
	return i, decode(b, i)
}

// walk calls fn for every block of an inode that is no hole, ascending, and for
// its indirect blocks, with lbn -1.
func (d *Disk) walk(i *Inode, fn func(lbn, addr int64, size int) error) error {
	bs := int64(d.Super.Bsize)
	for n, a := range i.DB {
		size := bs
		if int64(i.Size) < int64(n+1)*bs {
			size = (max(int64(i.Size)-int64(n)*bs, 0) + int64(d.Super.Fsize) - 1) / int64(d.Super.Fsize) * int64(d.Super.Fsize)
		}
		if a != 0 {
			if err := fn(int64(n), a, int(size)); err != nil {
				return err
			}
		}
	}
	first, span := int64(12), int64(1)
	for level, a := range i.IB {
		span *= int64(d.Super.Nindir)
		if a != 0 {
			if err := d.tree(a, level, first, span, fn); err != nil {
				return err
			}
		}
		first += span
	}
	return nil
}

func (d *Disk) tree(addr int64, level int, first, span int64, fn func(lbn, addr int64, size int) error) error {
	if err := fn(-1, addr, int(d.Super.Bsize)); err != nil {
		return err
	}
	b, err := d.bytes(addr, int(d.Super.Bsize))
	if err != nil {
		return err
	}
	span /= int64(d.Super.Nindir)
	for n := range int64(d.Super.Nindir) {
		a := int64(binary.LittleEndian.Uint64(b[8*n:]))
		if a == 0 {
			continue
		}
		if level == 0 {
			err = fn(first+n, a, int(d.Super.Bsize))
		} else {
			err = d.tree(a, level-1, first+n*span, span, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// content gives what is in an inode's blocks: all of it, so not for large files.
func (d *Disk) content(i *Inode) ([]byte, error) {
	if i.Size > 256<<20 {
		return nil, fmt.Errorf("%d bytes are not read at once", i.Size)
	}
	out := make([]byte, i.Size)
	err := d.walk(i, func(lbn, addr int64, size int) error {
		if lbn < 0 {
			return nil
		}
		b, err := d.bytes(addr, size)
		if err != nil {
			return err
		}
		at := lbn * int64(d.Super.Bsize)
		if at >= int64(len(out)) {
			return errors.New("a block behind the end of the file")
		}
		for _, c := range b[copy(out[at:], b):] {
			if c != 0 && d.fresh {
				return errors.New("not zero behind the end of the file")
			}
		}
		return nil
	})
	return out, err
}

type dirEntry struct {
	name string
	ino  uint32
	typ  uint8
}

// entries reads a directory, and holds every record to the rules of dir.h.
func (d *Disk) entries(i *Inode) ([]dirEntry, error) {
	b, err := d.content(i)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || len(b)%512 != 0 {
		return nil, fmt.Errorf("a directory of %d bytes", len(b))
	}
	var out []dirEntry
	for ; len(b) > 0; b = b[512:] {
		for at := 0; at < 512; {
			ino, reclen := binary.LittleEndian.Uint32(b[at:]), int(binary.LittleEndian.Uint16(b[at+4:]))
			typ, namlen := b[at+6], int(b[at+7])
			need := 8 + (namlen+1+3)/4*4
			if ino == 0 && at == 0 && !d.fresh && reclen > 0 && reclen%4 == 0 && reclen <= 512 {
				at += reclen // the first name of a block, removed
				continue
			}
			if ino == 0 || namlen == 0 || reclen%4 != 0 || reclen < need || at+reclen > 512 {
				return nil, fmt.Errorf("a record of %d bytes at %d, inode %d, name of %d", reclen, at, ino, namlen)
			}
			for _, c := range b[at+8+namlen : at+reclen] {
				if c != 0 && d.fresh {
					return nil, errors.New("not zero behind a name")
				}
			}
			out = append(out, dirEntry{string(b[at+8 : at+8+namlen]), ino, typ})
			at += reclen
		}
	}
	return out, nil
}

// Verify counts every fragment's and inode's owner, every name and every free
// piece, and compares with the tables.
func (d *Disk) Verify() error {
	s := &d.Super
	used := make([]uint64, (s.Size+63)/64)
	take := func(addr, n int64, what string) error {
		if addr <= 0 || addr+n > s.Size {
			return fmt.Errorf("%s: address %d of %d fragments", what, addr, s.Size)
		}
		for a := addr; a < addr+n; a++ {
			if used[a/64]>>(a%64)&1 != 0 {
				return fmt.Errorf("%s: fragment %d has two owners", what, a)
			}
			used[a/64] |= 1 << (a % 64)
		}
		return nil
	}
	used[0] |= 1 // the first fragment, which take refuses
	if err := take(1, int64(s.Dblkno)-1, "boot area and tables"); err != nil {
		return err
	}
	for g := int64(1); g < int64(s.Ncg); g++ {
		if err := take(g*int64(s.Fpg)+int64(s.Sblkno), int64(s.Dblkno-s.Sblkno), "a group's tables"); err != nil {
			return err
		}
	}
	if err := take(s.Csaddr, int64(s.Cssize/s.Fsize), "summaries"); err != nil {
		return err
	}
	inodes, err := d.reach(take)
	if err != nil {
		return err
	}
	var total [4]int64
	sums, err := d.bytes(s.Csaddr, int(s.Cssize))
	if err != nil {
		return err
	}
	if d.fresh && len(bytes.Trim(sums[16*s.Ncg:], "\x00")) != 0 {
		return errors.New("not zero behind the summaries")
	}
	for g := range int64(s.Ncg) {
		sum, err := d.group(g, used, inodes)
		if err != nil {
			return fmt.Errorf("group %d: %w", g, err)
		}
		var got [4]int32
		if err := decode(sums[16*g:], &got); err != nil || got != sum {
			return fmt.Errorf("group %d: summary %v, counted %v (%v)", g, got, sum, err)
		}
		for n, v := range sum {
			total[n] += int64(v)
		}
	}
	if total != s.Total || s.TotalSpare != [4]int64{} {
		return fmt.Errorf("totals %v, counted %v", s.Total, total)
	}
	return nil
}

// reach walks the names from the root, takes all blocks and gives the modes of
// all inodes that it has found.
func (d *Disk) reach(take func(addr, n int64, what string) error) (map[uint32]uint16, error) {
	modes, links := map[uint32]uint16{}, map[uint32]int16{}
	counts := map[uint32]int16{}
	type dir struct{ ino, parent uint32 }
	visit := func(ino uint32) (*Inode, error) {
		if ino < 2 || int64(ino) >= int64(d.Super.Ncg)*int64(d.Super.Ipg) {
			return nil, fmt.Errorf("there is no inode %d", ino)
		}
		i, err := d.Inode(ino)
		if err != nil {
			return nil, err
		}
		modes[ino], links[ino] = i.Mode, i.Nlink
		held := uint64(0)
		kind := i.Mode & 0o170000
		if kind == 0o120000 && i.Size < 120 || kind != 0o120000 && kind != 0o100000 && kind != 0o040000 {
			if i.Blocks != 0 {
				return nil, fmt.Errorf("inode %d: %d sectors for no blocks", ino, i.Blocks)
			}
			return i, nil
		}
		last := int64(-1)
		err = d.walk(i, func(lbn, addr int64, size int) error {
			if lbn*int64(d.Super.Bsize) >= int64(i.Size) {
				return errors.New("a block behind the end")
			}
			last = max(last, lbn)
			held += uint64(size / 512)
			if size == int(d.Super.Bsize) && addr%int64(d.Super.Frag) != 0 || addr/int64(d.Super.Frag) != (addr+int64(size)/int64(d.Super.Fsize)-1)/int64(d.Super.Frag) {
				return fmt.Errorf("%d bytes at fragment %d cross a block's border", size, addr)
			}
			return take(addr, int64(size)/int64(d.Super.Fsize), fmt.Sprintf("inode %d, block %d", ino, lbn))
		})
		if err == nil && held != i.Blocks {
			err = fmt.Errorf("it says %d sectors, and has %d", i.Blocks, held)
		}
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
		return i, nil
	}
	if _, err := visit(2); err != nil {
		return nil, err
	}
	for todo := []dir{{2, 2}}; len(todo) > 0; {
		at := todo[0]
		todo = todo[1:]
		i, err := d.Inode(at.ino)
		if err != nil {
			return nil, err
		}
		list, err := d.entries(i)
		if err != nil {
			return nil, fmt.Errorf("directory %d: %w", at.ino, err)
		}
		if len(list) < 2 || list[0] != (dirEntry{".", at.ino, 4}) || list[1] != (dirEntry{"..", at.parent, 4}) {
			return nil, fmt.Errorf("directory %d begins with %v", at.ino, list[:min(2, len(list))])
		}
		names := map[string]bool{}
		for n, e := range list {
			if names[e.name] {
				return nil, fmt.Errorf("directory %d has %q twice", at.ino, e.name)
			}
			names[e.name] = true
			counts[e.ino]++
			if n < 2 {
				continue
			}
			if _, known := modes[e.ino]; !known {
				if _, err := visit(e.ino); err != nil {
					return nil, fmt.Errorf("%q: %w", e.name, err)
				}
				if modes[e.ino]&0o170000 == 0o040000 {
					todo = append(todo, dir{e.ino, at.ino})
				}
			}
			if modes[e.ino]>>12 != uint16(e.typ) {
				return nil, fmt.Errorf("%q: type %d, mode %o", e.name, e.typ, modes[e.ino])
			}
		}
	}
	if !reflect.DeepEqual(counts, links) {
		return nil, fmt.Errorf("link counts %v, counted %v", links, counts)
	}
	return modes, nil
}

// group makes a group's block anew from what was counted and compares.
func (d *Disk) group(g int64, used []uint64, modes map[uint32]uint16) (sum [4]int32, err error) {
	s := &d.Super
	b, err := d.bytes(g*int64(s.Fpg)+int64(s.Cblkno), int(s.Cgsize))
	if err != nil {
		return sum, err
	}
	var got groupHeader
	if err := decode(b, &got); err != nil {
		return sum, err
	}
	base := g * int64(s.Fpg)
	want := groupHeader{Magic: 0x090255, Cgx: int32(g), Ndblk: int32(min(int64(s.Fpg), s.Size-base)), Niblk: s.Ipg, Time: s.Time}
	want.Nclusterblks = want.Ndblk / s.Frag
	want.Iusedoff = 168
	want.Freeoff = want.Iusedoff + (s.Ipg+7)/8
	want.Clustersumoff = (want.Freeoff + (s.Fpg+7)/8 - 4 + 3) / 4 * 4
	want.Clusteroff = want.Clustersumoff + (s.Contigsumsize+1)*4
	want.Nextfreeoff = want.Clusteroff + (s.Fpg/s.Frag+7)/8
	if want.Nextfreeoff > s.Cgsize {
		return sum, fmt.Errorf("its bitmaps end at %d of %d bytes", want.Nextfreeoff, s.Cgsize)
	}
	maps := make([]byte, s.Cgsize)
	set := func(off int32, n int64) { maps[int64(off)+n/8] |= 1 << (n % 8) }
	sum[2] = s.Ipg
	high := int64(-1)
	own := func(n int64, mode uint16) {
		set(want.Iusedoff, n)
		sum[2]--
		high = max(high, n)
		if mode&0o170000 == 0o040000 {
			sum[0]++
		}
	}
	if g == 0 {
		own(0, 0)
		own(1, 0)
	}
	for ino, mode := range modes {
		if n := int64(ino) - g*int64(s.Ipg); n >= 0 && n < int64(s.Ipg) {
			own(n, mode)
		}
	}
	runs := make([]int32, s.Contigsumsize+1)
	run := int32(0)
	end := func() {
		if run > 0 {
			runs[min(run, s.Contigsumsize)]++
		}
		run = 0
	}
	for at := int64(0); at < int64(want.Ndblk); at += int64(s.Frag) {
		taken := used[(base+at)/64] >> ((base + at) % 64) & (1<<s.Frag - 1) // frag is a power of two: it is in one word
		if taken == 1<<s.Frag-1 {
			end()
			continue
		}
		if taken == 0 {
			sum[1]++
			maps[int64(want.Freeoff)+at/8] |= byte((1<<s.Frag - 1) << (at % 8)) // and in one byte
			set(want.Clusteroff, at/int64(s.Frag))
			run++
			continue
		}
		end()
		free, row := 0, 0
		var rows []int
		for f := at; f < at+int64(s.Frag); f++ {
			if used[(base+f)/64]>>((base+f)%64)&1 == 0 {
				set(want.Freeoff, f)
				free++
				row++
				continue
			}
			rows, row = append(rows, row), 0
		}
		rows = append(rows, row)
		sum[3] += int32(free)
		for _, n := range rows {
			if n > 0 {
				want.Frsum[n]++
			}
		}
	}
	end()
	for n := int32(1); n <= s.Contigsumsize; n++ {
		binary.LittleEndian.PutUint32(maps[want.Clustersumoff+4*n:], uint32(runs[n]))
	}
	want.Sum = sum
	want.Initediblk = got.Initediblk
	if !d.fresh {
		want.Time, want.OldTime = got.Time, got.OldTime
		want.Rotor, want.Frotor, want.Irotor = got.Rotor, got.Frotor, got.Irotor
		maps = append(maps[:want.Nextfreeoff], b[want.Nextfreeoff:]...)
	}
	if i := int64(got.Initediblk); i <= high || i%int64(s.Inopb) != 0 || i > int64(s.Ipg) || i < min(int64(s.Ipg), 2*int64(s.Inopb)) {
		return sum, fmt.Errorf("inodes are valid up to %d; %d is in use", i, high)
	}
	for n := range int64(got.Initediblk) {
		if _, ok := modes[uint32(g*int64(s.Ipg)+n)]; ok {
			continue
		}
		i, err := d.Inode(uint32(g*int64(s.Ipg) + n))
		if err == nil && (i.Mode != 0 || i.DB != [12]int64{} || i.IB != [3]int64{} || d.fresh && *i != (Inode{})) {
			err = fmt.Errorf("inode %d is free, and not empty: %+v", g*int64(s.Ipg)+n, i)
		}
		if err != nil {
			return sum, err
		}
	}
	if got != want {
		return sum, fmt.Errorf("header %+v, counted %+v", got, want)
	}
	if !bytes.Equal(b[168:], maps[168:]) {
		return sum, errors.New("bitmaps or cluster sums differ from what is counted")
	}
	return sum, nil
}
