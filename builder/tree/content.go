package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Content is the bytes of a file. It may be opened by several goroutines at once.
// Two optional interfaces say more of it: Digester and Sparse.
type Content interface {
	// Size is the number of bytes, holes included.
	Size() int64
	// Open gives the bytes. They do not change while a tree refers to them.
	Open() (ReadAtCloser, error)
}

// ReadAtCloser reads at any offset until it is closed.
type ReadAtCloser interface {
	io.ReaderAt
	io.Closer
}

// Digester is a Content that knows its digest: "sha256:" and 64 hex digits.
type Digester interface {
	Digest() string
}

// Sparse is a Content that knows its holes.
type Sparse interface {
	// Extents gives the runs that may hold anything but zeros, ascending, apart
	// and within the size. All else is holes.
	Extents() ([]Extent, error)
}

// Extent is a run of bytes.
type Extent struct {
	Off, Len int64
}

// Extents gives a content's runs of data: all of it, where it does not know holes.
// It refuses what a Sparse may not say.
func Extents(c Content) ([]Extent, error) {
	if c == nil || c.Size() == 0 {
		return nil, nil
	}
	s, ok := c.(Sparse)
	if !ok {
		return []Extent{{0, c.Size()}}, nil
	}
	runs, err := s.Extents()
	if err != nil {
		return nil, err
	}
	end := int64(0)
	for _, e := range runs {
		if e.Len <= 0 || e.Off < end || e.Len > c.Size()-e.Off {
			return nil, fmt.Errorf("%w: an extent of %d bytes at %d, of a file of %d", ErrNode, e.Len, e.Off, c.Size())
		}
		end = e.Off + e.Len
	}
	return runs, nil
}

// DigestPrefix begins every digest: the hash is SHA-256 (FIPS 180-4).
const DigestPrefix = "sha256:"

// CheckDigest says whether a string has the form of a digest: "sha256:" and 64
// lower-case hex digits. It is then safe as a file's name.
func CheckDigest(s string) error {
	h, ok := strings.CutPrefix(s, DigestPrefix)
	if !ok || len(h) != 2*sha256.Size || strings.Trim(h, "0123456789abcdef") != "" {
		return fmt.Errorf("%.80q is not a digest: it looks like %s and %d hex digits", s, DigestPrefix, 2*sha256.Size)
	}
	return nil
}

// ContentDigest gives a content's digest, and reads it where it does not know its own.
// nil has the digest of no bytes.
func ContentDigest(c Content) (string, error) {
	sum, err := contentSum(c)
	if err != nil {
		return "", err
	}
	return DigestPrefix + hex.EncodeToString(sum[:]), nil
}

func contentSum(c Content) (sum [sha256.Size]byte, err error) {
	if c == nil {
		return sha256.Sum256(nil), nil
	}
	if d, ok := c.(Digester); ok {
		s := d.Digest()
		if err := CheckDigest(s); err != nil {
			return sum, err
		}
		_, err := hex.Decode(sum[:], []byte(s[len(DigestPrefix):]))
		return sum, err
	}
	r, err := c.Open()
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(r, 0, c.Size()))
	if err = errors.Join(err, r.Close()); err != nil {
		return sum, err
	}
	if n != c.Size() {
		return sum, fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, n, c.Size())
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// ReadAll gives a content's bytes, of which there may be limit at most.
func ReadAll(c Content, limit int64) ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	if c.Size() > limit {
		return nil, fmt.Errorf("%d bytes: at most %d are read at once", c.Size(), limit)
	}
	r, err := c.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, c.Size())
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// Bytes is a content that is in memory. The slice may not change any more.
type Bytes []byte

// Size is the length.
func (b Bytes) Size() int64 { return int64(len(b)) }

// Open cannot fail.
func (b Bytes) Open() (ReadAtCloser, error) { return byteReader{bytes.NewReader(b)}, nil }

// Digest computes it.
func (b Bytes) Digest() string {
	sum := sha256.Sum256(b)
	return DigestPrefix + hex.EncodeToString(sum[:])
}

type byteReader struct{ *bytes.Reader }

func (byteReader) Close() error { return nil }

// Ref is a content known by digest and size only: what Decode gives where nobody
// has the bytes. It cannot be opened.
type Ref struct {
	Sum   string // "sha256:…"
	Bytes int64
}

// Size is the number of bytes.
func (r Ref) Size() int64 { return r.Bytes }

// Digest is Sum.
func (r Ref) Digest() string { return r.Sum }

// Open always fails.
func (r Ref) Open() (ReadAtCloser, error) {
	return nil, fmt.Errorf("the bytes of %s are not at hand", r.Sum)
}
