package lifecycle

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ForgetPages takes the pages of the program's file that only its start needed out of the process's memory: code of initialisation,
// embedded files that were unpacked. What is used again comes back from the page cache, a few pages at a time. Pages that may be
// written are left alone.
func ForgetPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("finding the program's file: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("reading what is mapped: %w", err)
	}
	defer func() { _ = maps.Close() }() // it was only read
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		begin, end, ok := readOnlyOf(lines.Text(), exe)
		if !ok {
			continue
		}
		if _, _, failed := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); failed != 0 {
			return fmt.Errorf("forgetting pages at %#x: %w", begin, failed)
		}
	}
	return lines.Err()
}

// readOnlyOf is the range of a line of /proc/PID/maps if it maps the file and cannot be written.
func readOnlyOf(line, file string) (begin, end uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) != 6 || fields[5] != file || strings.Contains(fields[1], "w") {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &begin, &end); err != nil {
		return 0, 0, false
	}
	return begin, end, begin < end
}
