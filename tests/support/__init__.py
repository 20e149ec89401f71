"""What several tests share: tiny models and datasets, servers on loopback, and runs in processes of their own."""
