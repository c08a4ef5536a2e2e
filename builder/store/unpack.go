package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// DefaultMaxDisk bounds what an image from elsewhere may unpack to, bytes, where
// nobody says more: a few kilobytes of archive can stand for a terabyte.
const DefaultMaxDisk = 64 << 30

// Unpack is an image that comes from elsewhere. Nothing of it is trusted.
type Unpack struct {
	Manifest []byte
	// Fetch gives a content of the manifest; its size and digest are checked here.
	Fetch      func(ctx context.Context, d Descriptor) (io.ReadCloser, error)
	Names      []spec.Reference
	Digests    []string // name@digest, where it comes from
	Signatures [][]byte // files; those that are none are left out

	Keys     []sign.PublicKey // one of them must have signed the image; none: no signature is asked for
	NoTree   bool
	MaxDisk  int64 // bytes; 0 is DefaultMaxDisk
	Progress func(what string, got, total int64)
}

// unpacker is an Unpack at work.
type unpacker struct {
	Unpack
	s   *Store
	ctx context.Context
}

// Unpack checks an image and stores it: it is in the store under its names when
// all of it is there and fits together. Its errors are ErrRefused, ErrUnsigned
// and Fetch's.
func (s *Store) Unpack(ctx context.Context, u Unpack) (Entry, error) {
	release, err := s.blobs.Hold()
	if err != nil {
		return Entry{}, err
	}
	defer release()
	if u.MaxDisk == 0 {
		u.MaxDisk = DefaultMaxDisk
	}
	m, err := ParseManifest(u.Manifest)
	if err != nil {
		return Entry{}, err
	}
	p, err := m.sort()
	if err != nil {
		return Entry{}, err
	}
	var valid [][]byte
	for _, file := range u.Signatures {
		if _, err := sign.ParseSignature(file); err == nil && len(valid) < maxSignatures {
			valid = append(valid, file)
		}
	}
	u.Signatures = valid
	w := &unpacker{u, s, ctx}
	if p.config == nil {
		return w.bare(p)
	}
	return w.described(p)
}

// described unpacks an image that has a description, which is checked before
// anything large is fetched.
func (u *unpacker) described(p parts) (Entry, error) {
	r, err := u.Fetch(u.ctx, *p.config)
	if err != nil {
		return Entry{}, err
	}
	doc, err := readVerified(r, *p.config, spec.MaxDocument)
	r.Close()
	if err != nil {
		return Entry{}, err
	}
	img, err := spec.Parse(doc)
	if err != nil {
		return Entry{}, refused("%w", err)
	}
	if img.Disk.Size > u.MaxDisk {
		return Entry{}, refused("a disk of %d bytes; at most %d are taken, unless more is allowed", img.Disk.Size, u.MaxDisk)
	}
	if err := VerifyDocument(doc, u.Signatures, u.Keys); err != nil {
		return Entry{}, err
	}
	if err := u.content("disk", p.disk, img.Disk.Digest, img.Disk.Size); err != nil {
		return Entry{}, err
	}
	switch {
	case img.Kernel.Digest == "" && p.kernel != nil:
		return Entry{}, refused("a kernel that the description does not know")
	case img.Kernel.Digest != "":
		if p.kernel == nil {
			return Entry{}, refused("the description has a kernel, and there is no layer of %s", TypeKernel)
		}
		if err := u.content("kernel", p.kernel, img.Kernel.Digest, img.Kernel.Size); err != nil {
			return Entry{}, err
		}
	}
	if p.tree != nil && !u.NoTree {
		if err := u.tree(p.tree, img); err != nil {
			return Entry{}, err
		}
	}
	return u.s.commit(u.ctx, doc, u.Names, u.Digests, u.Signatures)
}

// bare unpacks a disk without a description, as smolBSD publishes them, and
// makes the description: the same disk has the same one everywhere.
func (u *unpacker) bare(p parts) (Entry, error) {
	if strings.Contains(p.title, "-evbarm") {
		return Entry{}, refused("%q is an image for another architecture: smolvmm runs amd64", p.title)
	}
	size := (p.disk.Size + 511) / 512 * 512 // smolBSD signs an image with some bytes at its end
	if size > u.MaxDisk {
		return Entry{}, refused("a disk of %d bytes; at most %d are taken, unless more is allowed", size, u.MaxDisk)
	}
	r, err := u.Fetch(u.ctx, *p.disk)
	if err != nil {
		return Entry{}, err
	}
	defer r.Close()
	disk, err := u.store(u.watch("disk", newVerified(r, *p.disk), p.disk.Size), size, p.disk.Size, "")
	if err != nil {
		return Entry{}, err
	}
	img := spec.Image{Architecture: "amd64", OS: "netbsd", Created: p.created}
	img.Disk = spec.Disk{Digest: disk.Digest(), Size: disk.Size()}
	f, err := os.Open(disk.Path())
	if err != nil {
		return Entry{}, err
	}
	img.Disk.Layout, img.Disk.Root = Sniff(f)
	f.Close()
	doc, err := img.Encode()
	if err != nil {
		return Entry{}, refused("%w", err)
	}
	if err := VerifyDocument(doc, u.Signatures, u.Keys); err != nil {
		return Entry{}, err
	}
	return u.s.commit(u.ctx, doc, u.Names, u.Digests, u.Signatures)
}

func (u *unpacker) watch(what string, r io.Reader, total int64) io.Reader {
	return &watched{ctx: u.ctx, r: r, what: what, total: total, progress: u.Progress}
}

// content fetches a layer into the store, unless what is in it is there.
func (u *unpacker) content(what string, d *Descriptor, digest string, size int64) error {
	if _, err := u.s.content(digest, size); err == nil {
		return nil
	}
	r, err := u.Fetch(u.ctx, *d)
	if err != nil {
		return err
	}
	defer r.Close()
	outer := newVerified(r, *d)
	var in = u.watch(what, outer, d.Size)
	if d.MediaType != TypeRawDisk {
		z, err := unzstd(in)
		if err != nil {
			return err
		}
		defer z.Close()
		in = z
	}
	if _, err := u.store(in, size, size, digest); err != nil {
		return refusedCorrupt(what, err)
	}
	if _, err := io.Copy(io.Discard, outer); err != nil {
		return err
	}
	return nil
}

// maxWindow bounds what a zstd decoder allocates, bytes: RFC 8878, 3.1.1.1.2
// recommends that 8 MiB be supported; encoders at their highest levels use more.
const maxWindow = 32 << 20

func unzstd(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// refusedCorrupt tells what could not be decompressed.
func refusedCorrupt(what string, err error) error {
	for _, z := range []error{zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrWindowSizeExceeded, zstd.ErrBlockTooSmall,
		zstd.ErrFrameSizeExceeded, zstd.ErrUnexpectedBlockSize, zstd.ErrReservedBlockType, zstd.ErrCompressedSizeTooBig,
		zstd.ErrWindowSizeTooSmall, zstd.ErrUnknownDictionary, zstd.ErrFrameSizeMismatch, zstd.ErrDecoderSizeExceeded, io.ErrUnexpectedEOF} {
		if errors.Is(err, z) {
			return refused("the %s cannot be decompressed: %w", what, err)
		}
	}
	return err
}

// store writes a stream of exactly given bytes into a content, which is filled
// with zeros up to size, and has digest where that is not "".
func (u *unpacker) store(r io.Reader, size, given int64, digest string) (blob.Blob, error) {
	w, err := u.s.blobs.Create()
	if err != nil {
		return blob.Blob{}, err
	}
	defer w.Close()
	sp := &sparse{ctx: u.ctx, w: w}
	n, err := io.CopyBuffer(sp, io.LimitReader(r, given+1), make([]byte, 1<<20))
	switch {
	case err != nil:
		return blob.Blob{}, err
	case n > given:
		return blob.Blob{}, refused("%s is longer than the %d bytes that it should have", digest, given)
	case n < given:
		return blob.Blob{}, refused("%s has %d bytes instead of %d", digest, n, given)
	}
	sp.hole += size - given
	if err := sp.flush(); err != nil {
		return blob.Blob{}, err
	}
	if digest != "" && w.Digest() != digest {
		return blob.Blob{}, refused("what should be %s is %s", digest, w.Digest())
	}
	return w.Commit()
}

// tree fetches the archive of a tree.
func (u *unpacker) tree(d *Descriptor, img spec.Image) error {
	digest := img.Tree
	if digest == "" {
		return refused("a tree that the description does not know")
	}
	if b, err := u.s.blobs.Open(digest); err == nil && u.complete(b) {
		return nil
	}
	r, err := u.Fetch(u.ctx, *d)
	if err != nil {
		return err
	}
	defer r.Close()
	outer := newVerified(r, *d)
	z, err := unzstd(u.watch("tree", outer, d.Size))
	if err != nil {
		return err
	}
	defer z.Close()
	if err := u.untar(tar.NewReader(z), img); err != nil {
		return refusedCorrupt("tree", err)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(z, maxTree)); err != nil {
		return refusedCorrupt("tree", err)
	}
	_, err = io.Copy(io.Discard, outer)
	return err
}

// complete tells whether all files of a tree are in the store.
func (u *unpacker) complete(b blob.Blob) bool {
	sizes, err := u.s.contentsOf(b.Path())
	for d, size := range sizes {
		if err == nil {
			_, err = u.s.content(d, size)
		}
	}
	return err == nil
}

func (u *unpacker) untar(t *tar.Reader, img spec.Image) error {
	h, err := t.Next()
	if err != nil {
		return refused("the archive of the tree: %w", err)
	}
	if h.Name != treeEntry || h.Typeflag != tar.TypeReg || h.Size > maxTree {
		return refused("the archive of the tree begins with %q of %d bytes", clip(h.Name), h.Size)
	}
	b, err := u.store(t, h.Size, h.Size, img.Tree)
	if err != nil {
		return err
	}
	want, err := u.s.contentsOf(b.Path())
	if err != nil {
		return refused("%w", err)
	}
	var total int64
	for _, size := range want {
		if total += size; size > u.MaxDisk || total > u.MaxDisk {
			return refused("a tree with files of more than %d bytes", u.MaxDisk)
		}
	}
	if h, err = t.Next(); err != nil {
		return refused("the archive of the tree: %w", err)
	}
	if h.Name != diskEntry || h.Typeflag != tar.TypeReg || h.Size > maxShared {
		return refused("the archive of the tree goes on with %q of %d bytes", clip(h.Name), h.Size)
	}
	if err := u.fromDisk(t, img.Disk, want); err != nil {
		return err
	}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refused("the archive of the tree: %w", err)
		}
		d := tree.DigestPrefix + h.Name
		size, ok := want[d]
		if !ok || h.Typeflag != tar.TypeReg || size != h.Size {
			return refused("the archive of the tree has %q with %d bytes, which the tree does not name so", clip(h.Name), h.Size)
		}
		if _, err := u.store(t, size, size, d); err != nil {
			return err
		}
		delete(want, d)
	}
	for d, size := range want {
		if _, err := u.s.content(d, size); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return refused("the archive of the tree lacks %s", d)
			}
			return err
		}
	}
	return nil
}

// fromDisk makes the contents that are on the image's disk, which is in the store,
// and leaves the others in want.
func (u *unpacker) fromDisk(r io.Reader, d spec.Disk, want map[string]int64) error {
	table, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	disk, err := u.s.content(d.Digest, d.Size)
	if err != nil {
		return err
	}
	f, err := disk.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	m := sharedReader{table, d.Size}
	for _, digest := range slices.Sorted(maps.Keys(want)) {
		size := want[digest]
		runs, ok, err := m.next(size)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if _, err := u.s.content(digest, size); err != nil {
			if _, err := u.store(&runReader{disk: f, runs: runs, size: size}, size, size, digest); err != nil {
				return err
			}
		}
		delete(want, digest)
	}
	if len(m.b) > 0 {
		return refused("the map of the tree's files on the disk has %d bytes too many", len(m.b))
	}
	return nil
}

// Sniff tells how a disk is laid out, and the root that a kernel would be given
// for it: from the GPT (UEFI specification 2.10, 5.3) or the magic numbers of
// FFS (NetBSD's ufs/ffs/fs.h) and ext2 (ufs/ext2fs/ext2fs.h).
func Sniff(r io.ReaderAt) (layout, root string) {
	head := make([]byte, 68<<10)
	n, _ := r.ReadAt(head, 0)
	head = head[:n]
	at := func(off, n int) []byte {
		if off+n > len(head) {
			return make([]byte, n)
		}
		return head[off : off+n]
	}
	le := binary.LittleEndian
	if string(at(512, 8)) == "EFI PART" {
		entry := int64(le.Uint64(at(512+72, 8)))
		size := int64(le.Uint32(at(512+84, 4)))
		if entry > 0 && entry < 128 && size >= 128 && size <= 4096 {
			for i := range int64(8) {
				e := at(int(entry*512+i*size), 128)
				if bytes.Equal(e[:16], make([]byte, 16)) {
					continue // an unused entry
				}
				name := make([]uint16, 36)
				for i := range name {
					name[i] = le.Uint16(e[56+2*i:])
				}
				label, _, _ := strings.Cut(string(utf16.Decode(name)), "\x00")
				if spec.CheckRoot("NAME="+label) == nil {
					return spec.LayoutGPT, "NAME=" + label
				}
			}
		}
		return spec.LayoutGPT, "dk0"
	}
	const magicAt = 1372                             // of fs_magic in struct fs
	for _, sb := range []int{64 << 10, 8 << 10, 0} { // SBLOCKSEARCH, but for the floppy's
		if m := le.Uint32(at(sb+magicAt, 4)); m == 0x19540119 || m == 0x011954 {
			return spec.LayoutFFS, "ld0a"
		}
	}
	if le.Uint16(at(1024+56, 2)) == 0xEF53 {
		return spec.LayoutExt2, "ld0a"
	}
	return spec.LayoutRaw, "ld0a"
}
