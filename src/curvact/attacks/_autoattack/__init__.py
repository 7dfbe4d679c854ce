"""The rooms behind `curvact.attacks.autoattack`: what an ensemble holds, how a shard is attacked, stored and shared out."""
