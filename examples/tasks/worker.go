package main

import (
	"context"
	"log/slog"
	"time"
)

// work archives what is done and writes the day's digest until it is told to end. A round that fails is
// told and tried again: the database may be restarting.
func work(ctx context.Context, s *store, settings settingsOf, logger *slog.Logger) error {
	logger.Info("working", "every", settings.every.String(), "archiveAfter", settings.archive.String())
	ticker := time.NewTicker(settings.every)
	defer ticker.Stop()
	var last digest
	for {
		d, archived, err := workOnce(ctx, s, settings.archive)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			logger.Warn("this round failed", "error", err.Error())
		case archived > 0 || d != last:
			logger.Info("worked", "archived", archived, "day", d.Day, "created", d.Created, "finished", d.Finished)
			last = d
		}
		select {
		case <-ctx.Done():
			logger.Info("stopped")
			return nil
		case <-ticker.C:
		}
	}
}

func workOnce(ctx context.Context, s *store, after time.Duration) (digest, int64, error) {
	archived, err := s.archive(ctx, after)
	if err != nil {
		return digest{}, 0, err
	}
	d, err := s.writeDigest(ctx)
	return d, archived, err
}
