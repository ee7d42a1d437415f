"""float16 programs that keep in float32 what float16 cannot hold, and programs widened to float32."""
