package sqlite

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ncruces/go-sqlite3"

	"github.com/atelier-edge/atelier/hub/store/internal/sqlstore"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	plenty := func() (int64, error) { return 1 << 40, nil }
	none := func() (int64, error) { return 4096, nil }
	unknown := func() (int64, error) { return 0, errors.New("no statfs") }
	for _, c := range []struct {
		err  error
		free func() (int64, error)
		want sqlstore.Fault
	}{
		{sqlite3.FULL, plenty, sqlstore.Full},
		{sqlite3.BUSY, plenty, sqlstore.Offline},
		{sqlite3.BUSY_TIMEOUT, plenty, sqlstore.Offline},
		{sqlite3.LOCKED, plenty, sqlstore.Offline},
		{sqlite3.IOERR_WRITE, plenty, sqlstore.Broken},
		{sqlite3.IOERR_WRITE, none, sqlstore.Full},
		{sqlite3.IOERR_SHMSIZE, none, sqlstore.Full},
		{sqlite3.IOERR_WRITE, unknown, sqlstore.Broken},
		{sqlite3.CORRUPT, none, sqlstore.Broken},
		{errors.New("something else"), none, sqlstore.Broken},
	} {
		if got := classify(fmt.Errorf("commit: %w", c.err), c.free); got != c.want {
			t.Errorf("classify(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
