package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

const (
	// PartSuffix is what a file's name has while it is not whole, and
	// ValidatorSuffix what the file beside it has that says of which file it is
	// a part: the URL and the validator, a line each, which If-Range needs.
	PartSuffix      = ".part"
	ValidatorSuffix = ".part.of"

	// maxIdleTries bounds requests in a row that bring nothing new, maxTries
	// all of them.
	maxIdleTries = 2
	maxTries     = 50
)

// Request is for a file.
type Request struct {
	URL string
	// Path is the file's name to be: what is got stands at Path + PartSuffix.
	Path string
	// Limit bounds the file, in bytes, and What says what it should be.
	Limit int64
	What  string // "a kernel"
	// Progress is told the bytes got and to get (-1: unknown), in the caller's
	// goroutine; nil is nobody.
	Progress func(got, total int64)
}

// errCut says that a transfer ended early and can go on.
type errCut struct{ err error }

func (e errCut) Error() string { return e.err.Error() }
func (e errCut) Unwrap() error { return e.err }

// Download fills the part file of a request, going on where an earlier transfer
// was cut as long as the server says that the file is still the same (RFC 9110
// §13.1.5). It does not know whether what it got is right: check it, then give it
// its name, or Drop it. One process at a time may fetch a Path (see Lock).
func (c *Client) Download(ctx context.Context, r Request) (err error) {
	d := download{c, r}
	defer func() {
		if st, serr := os.Stat(r.Path + PartSuffix); err != nil && serr == nil && st.Size() == 0 {
			Drop(r.Path) // there is nothing to go on with
		}
	}()
	part, err := os.OpenFile(r.Path+PartSuffix, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return c.o.Disk(err)
	}
	defer part.Close()
	idle := 0
	for try := 0; ; try++ {
		before, err := part.Seek(0, io.SeekEnd)
		if err != nil {
			return c.o.Disk(err)
		}
		err = d.transfer(ctx, part, before)
		var cut errCut
		if !errors.As(err, &cut) {
			return err
		}
		after, serr := part.Seek(0, io.SeekEnd)
		if serr != nil {
			return c.o.Disk(serr)
		}
		if idle++; after > before {
			idle = 0
		}
		if idle >= maxIdleTries || try+1 >= maxTries || ctx.Err() != nil {
			return c.netError(r.URL, cut.err)
		}
	}
}

// Drop removes what there is of a file that was fetched to path.
func Drop(path string) {
	os.Remove(path + PartSuffix)
	os.Remove(path + ValidatorSuffix)
}

type download struct {
	*Client
	Request
}

// transfer is one request. have bytes of the file are in part.
func (d *download) transfer(ctx context.Context, part *os.File, have int64) error {
	header := http.Header{}
	if v := d.validator(); have > 0 && v != "" {
		header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		header.Set("If-Range", v)
	}
	resp, err := d.get(ctx, d.URL, header)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && have > 0 && e.Kind == ErrNetwork {
			return errCut{err}
		}
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var first, last, total int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total); n < 2 || first != have || header.Get("Range") == "" {
			return Fail(ErrServer, nil, "%s: the mirror sends another part than was asked for (%.80q)", d.URL, resp.Header.Get("Content-Range"))
		}
	case http.StatusOK: // the whole file: it changed, or ranges are not served
		if err := part.Truncate(0); err != nil {
			return d.o.Disk(err)
		}
		have = 0
		if err := d.setValidator(resp.Header); err != nil {
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// What is here may be the whole file already; its digest tells.
		return nil
	default:
		return status(resp, d.URL)
	}
	total := int64(-1)
	if resp.ContentLength >= 0 {
		total = have + resp.ContentLength
	}
	if total > d.Limit {
		return d.tooLong()
	}
	return d.copyBody(part, resp.Body, have, total)
}

func (d *download) tooLong() error {
	Drop(d.Path)
	return Fail(ErrServer, nil, "%s: longer than %d MiB: not %s", d.URL, d.Limit>>20, d.What)
}

func (d *download) copyBody(part *os.File, r io.Reader, have, total int64) error {
	buf := make([]byte, 64<<10)
	for {
		if d.Progress != nil {
			d.Progress(have, total)
		}
		n, err := r.Read(buf)
		if have+int64(n) > d.Limit {
			return d.tooLong()
		}
		if _, werr := part.WriteAt(buf[:n], have); werr != nil {
			return d.o.Disk(werr)
		}
		have += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			if d.Progress != nil {
				d.Progress(have, total)
			}
			return nil
		case err != nil:
			return errCut{err}
		}
	}
}

// validator is what the server gave to tell whether the file is the one the
// part was cut from, or "".
func (d *download) validator() string {
	b, err := os.ReadFile(d.Path + ValidatorSuffix)
	if err != nil || len(b) > 4096 {
		return ""
	}
	of, v, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if of != d.URL || strings.ContainsAny(v, "\r\n") {
		return ""
	}
	return v
}

// setValidator notes a strong ETag, or else the date (RFC 9110 §13.1.5 wants
// no weak ones in If-Range).
func (d *download) setValidator(h http.Header) error {
	v := h.Get("ETag")
	if !strings.HasPrefix(v, `"`) {
		v = h.Get("Last-Modified")
	}
	if err := os.WriteFile(d.Path+ValidatorSuffix, []byte(d.URL+"\n"+v+"\n"), 0o644); err != nil {
		return d.o.Disk(err)
	}
	return nil
}
