package lifecycle

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// WithSignals returns a context that ends at the first SIGTERM or SIGINT. The second one calls exit
// with 128 plus the signal's number, at once. stop gives the signals back and waits.
func WithSignals(ctx context.Context, exit func(code int)) (signalled context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ended, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		handleSignals(signals, quit, cancel, exit)
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(quit)
		<-ended
		cancel()
	}
}

func handleSignals(signals <-chan os.Signal, quit <-chan struct{}, cancel func(), exit func(int)) {
	for seen := 0; ; seen++ {
		select {
		case <-quit:
			return
		case s := <-signals:
			if seen == 0 {
				cancel()
				continue
			}
			code := 1
			if number, ok := s.(syscall.Signal); ok {
				code = 128 + int(number)
			}
			exit(code)
			return
		}
	}
}
